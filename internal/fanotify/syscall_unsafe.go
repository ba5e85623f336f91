package fanotify

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The wrappers below enter the kernel without telling the Go scheduler
// (RawSyscall): at some microseconds an event, entering and leaving the
// scheduler is most of what Go adds to C. They are only for calls that cannot
// block: the group descriptor is non-blocking, a response is a list operation,
// and a zero-timeout epoll_wait returns at once.

// response is struct fanotify_response (fanotify(7)).
type response struct {
	fd       int32
	response uint32
}

// rawRespond writes one response. It returns 0 or the errno.
func rawRespond(group int, fd int32, decision Decision) syscall.Errno {
	r := response{fd: fd, response: uint32(decision)}
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(group), uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// The two below tell the scheduler, unlike their neighbours: a network or FUSE
// filesystem can let them take any time, during which the garbage collector must
// not wait for this thread, and with it every goroutine of the agent.

// fstat fills st for an open descriptor.
func fstat(fd int, st *unix.Stat_t) syscall.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// readEvents reads events into buf. The kernel opens the event's file inside this
// call.
func readEvents(group int, buf []byte) (int, syscall.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(group), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	return int(n), errno
}

// epollReady asks for ready groups without waiting.
func epollReady(epfd int, evs []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_WAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(evs))), uintptr(len(evs)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
