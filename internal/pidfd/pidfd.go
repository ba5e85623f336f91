// Package pidfd is what can be done with a descriptor of a process (pidfd_open(2)).
// Unlike its number, that is never another process's. It must not own which process,
// or why.
package pidfd

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAlive says that a process that was killed has not ended in time: it is in the
// kernel, and will do nothing more when it comes out.
var ErrAlive = errors.New("it has not ended")

// Exited reports whether the process has exited, or does within patience: only then is
// the descriptor readable (pidfd_open(2)).
func Exited(fd int, patience time.Duration) bool {
	deadline := time.Now().Add(patience)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll(fds, int(left.Milliseconds())) // EINTR: look again
		if n > 0 || left == 0 {
			return n > 0 && err == nil
		}
	}
}

// Kill kills the process and waits for its end. It fails with ErrAlive after patience.
// A process that has ended is no error.
func Kill(fd int, patience time.Duration) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if !Exited(fd, patience) {
		return fmt.Errorf("%w within %v", ErrAlive, patience)
	}
	return nil
}

// Duplicate returns another descriptor of the process, which the caller closes.
func Duplicate(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}
