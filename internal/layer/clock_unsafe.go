package layer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawReadable reports whether a descriptor can be read at once. It never waits, so
// the scheduler need not know.
func rawReadable(fd int) bool {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN} //nolint:gosec // a descriptor
	var now unix.Timespec
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n == 1
}
