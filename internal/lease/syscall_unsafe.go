package lease

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of asm-generic/fcntl.h that x/sys/unix lacks.
const (
	fSetSig   = 10
	fSetOwnEx = 15
	ownerTID  = 0
)

// ownerEx is struct f_owner_ex.
type ownerEx struct{ kind, id int32 }

// own makes the thread tid the one that is told about fd, by the signal sig.
func own(fd, tid int, sig syscall.Signal) error {
	if err := fcntl(fd, fSetSig, uintptr(sig)); err != nil {
		return err
	}
	o := ownerEx{ownerTID, int32(tid)} //nolint:gosec // a thread id
	return fcntl(fd, fSetOwnEx, uintptr(unsafe.Pointer(&o)))
}

// setLease takes (F_RDLCK) or gives back (F_UNLCK) the lease on fd.
func setLease(fd int, kind uintptr) error { return fcntl(fd, unix.F_SETLEASE, kind) }

// fcntl is fcntl(2) without a result. None of the commands here waits for anything.
func fcntl(fd, cmd int, arg uintptr) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), arg)
		switch {
		case errno == 0:
			return nil
		case !errors.Is(errno, unix.EINTR):
			return errno
		}
	}
}
