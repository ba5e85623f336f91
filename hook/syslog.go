package hook

import (
	"errors"
	"fmt"
	"syscall"
)

// Syslog sends one line to the system log that listens on the given datagram
// socket (usually /dev/log), as daemon.err (RFC 3164). It is for runtimes that
// run hooks with their standard error on /dev/null. It never waits: a log
// whose queue is full is an error.
func Syslog(socket, tag string, pid int, line string) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("create a socket: %w", err)
	}
	defer syscall.Close(fd)
	const daemonErr = 3<<3 | 3
	packet := fmt.Appendf(nil, "<%d>%s[%d]: %s", daemonErr, tag, pid, line)
	for {
		err = syscall.Sendto(fd, packet, 0, &syscall.SockaddrUnix{Name: socket})
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", socket, err)
	}
	return nil
}
