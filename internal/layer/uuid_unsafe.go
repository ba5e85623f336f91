package layer

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoUUID says that a filesystem does not tell its UUID.
var ErrNoUUID = errors.New("the filesystem does not tell its UUID (FS_IOC_GETFSUUID, Linux 6.9; ext4, xfs, btrfs and others have one): files cannot be scanned before they are opened")

// uuid names a filesystem, as it stands in overlay handles.
type uuid [16]byte

// getFSUUID is FS_IOC_GETFSUUID of linux/fs.h: _IOR(0x15, 0, struct fsuuid2).
const getFSUUID = 2<<30 | 17<<16 | 0x15<<8

// uuidOf returns the UUID of the filesystem that fd is on.
func uuidOf(fd int) (uuid, error) {
	var answer struct { // struct fsuuid2
		length uint8
		uuid   uuid
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getFSUUID, uintptr(unsafe.Pointer(&answer)))
	if errno != 0 {
		return uuid{}, fmt.Errorf("%w: %w", ErrNoUUID, errno)
	}
	if int(answer.length) != len(answer.uuid) {
		return uuid{}, ErrNoUUID
	}
	return answer.uuid, nil
}
