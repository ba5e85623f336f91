// Package lockfile is a file whose lock says that a daemon is at work, with its pid in
// it. The file stays when the daemon goes: removing it would race with the next one's
// lock. It must not own what the lock stands for.
package lockfile

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld says that another process has the lock.
var ErrHeld = errors.New("another process has the lock")

// askEvery is the pause between two attempts.
const askEvery = 20 * time.Millisecond

// Take takes the lock, and writes our pid for whoever comes second. One whose holder is
// ending is waited for, up to patience; then it fails with ErrHeld. The lock lasts until
// the descriptor is closed.
func Take(path string, patience time.Duration) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, err
	}
	if err = flock(fd, patience); err == nil {
		err = unix.Ftruncate(fd, 0)
	}
	if err == nil {
		_, err = unix.Pwrite(fd, fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func flock(fd int, patience time.Duration) error {
	over := time.After(patience)
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
		select {
		case <-over:
			return fmt.Errorf("%w: %w", ErrHeld, err)
		case <-time.After(askEvery):
		}
	}
}

// PID returns the pid in the lock file; 0 if there is none in it.
func PID(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, nil //nolint:nilerr // whoever has it has not written yet
	}
	return pid, nil
}
