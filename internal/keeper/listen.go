package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another keeper has the socket.
var ErrRunning = errors.New("another keeper is at work")

// Listen makes the keeper's socket, with its directory, for root alone. A lock beside
// it tells a keeper at work from a socket that one has left behind. The lock is given
// up with the process.
func Listen(socket string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	if err := lock(socket + ".lock"); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket that another keeper has left: %w", err)
	}
	// For root alone from its first moment.
	before := unix.Umask(0o177)
	defer unix.Umask(before)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln, nil
}

// lock takes the lock file for as long as the process lives, and writes our pid into
// it: for whoever has to end a keeper that does not answer.
func lock(file string) error {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock %s: %w", file, err)
	}
	if err := flock(fd); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s is locked", ErrRunning, file)
		}
		return fmt.Errorf("lock %s: %w", file, err)
	}
	err = unix.Ftruncate(fd, 0)
	if err == nil {
		_, err = unix.Pwrite(fd, fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// lockPatience is how long the last keeper may take to end.
const lockPatience = time.Second

// flock takes a lock that somebody who is ending may still have.
func flock(fd int) error {
	over := time.After(lockPatience)
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-over:
			return err
		case <-time.After(lockPatience / 50):
		}
	}
}
