package layer

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The wrappers below do what their namesakes in x/sys/unix do, without
// allocating: these turn every path into a new byte slice, every handle into a new
// object. They tell the scheduler, because the file can be on a filesystem that
// asks a server.

// emptyPath makes a system call with AT_EMPTY_PATH work on the descriptor.
var emptyPath [1]byte //nolint:gochecknoglobals // a constant that the kernel reads

// rawStatx is statx(2) of an open file, for what statxMask asks.
func rawStatx(fd int, stx *unix.Statx_t) syscall.Errno {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&emptyPath)),
			unix.AT_EMPTY_PATH, statxMask, uintptr(unsafe.Pointer(stx)), 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// rawHandle is name_to_handle_at(2) of an open file.
func rawHandle(fd, flags int, h *handle) syscall.Errno {
	var mountID int32
	for {
		h.size = maxHandle
		_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&emptyPath)),
			uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(&mountID)), uintptr(unix.AT_EMPTY_PATH|flags), 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// rawOpenat2 is openat2(2). path ends with a zero byte.
func rawOpenat2(dirfd int, path []byte, how *unix.OpenHow) (int, syscall.Errno) {
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT2, uintptr(dirfd), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
			uintptr(unsafe.Pointer(how)), unsafe.Sizeof(*how), 0, 0)
		if errno != unix.EINTR {
			return int(fd), errno
		}
	}
}

// rawOpenByHandle is open_by_handle_at(2). mount is a descriptor of any file of the
// handle's filesystem, but not one of O_PATH.
func rawOpenByHandle(mount int, h *handle, flags int) (int, syscall.Errno) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mount), uintptr(unsafe.Pointer(h)), uintptr(flags))
		if errno != unix.EINTR {
			return int(fd), errno
		}
	}
}

// fsUUID is struct fsuuid2 of linux/fs.h.
type fsUUID struct {
	length uint8
	bytes  uuid
}

// fsIOCGetFSUUID is FS_IOC_GETFSUUID of linux/fs.h, _IOR(0x15, 0, struct fsuuid2).
const fsIOCGetFSUUID = 2<<30 | uintptr(unsafe.Sizeof(fsUUID{}))<<16 | 0x15<<8

// rawUUID is ioctl(2) with FS_IOC_GETFSUUID.
func rawUUID(fd int, u *fsUUID) syscall.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIOCGetFSUUID, uintptr(unsafe.Pointer(u)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// rawGetxattr is getxattr(2) into nothing: it asks whether the attribute is there.
// path and name end with a zero byte.
func rawGetxattr(path, name []byte) syscall.Errno {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_GETXATTR, uintptr(unsafe.Pointer(unsafe.SliceData(path))),
			uintptr(unsafe.Pointer(unsafe.SliceData(name))), 0, 0, 0, 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}
