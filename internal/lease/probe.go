package lease

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotSupported says that this kernel gives no leases.
var ErrNotSupported = errors.New("not supported")

// Probe tries whether a read lease can be had, on a scratch file that it removes.
func Probe() error {
	scratch, err := os.CreateTemp("", "assay-probe-")
	if err != nil {
		return fmt.Errorf("scratch file: %w", err)
	}
	defer os.Remove(scratch.Name())
	if err := scratch.Close(); err != nil { // a writer
		return fmt.Errorf("scratch file: %w", err)
	}
	fd, err := unix.Open(scratch.Name(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("scratch file: %w", err)
	}
	defer unix.Close(fd)
	if err := setLease(fd, unix.F_RDLCK); err != nil {
		return fmt.Errorf("read lease: %w: %w", ErrNotSupported, err)
	}
	return setLease(fd, unix.F_UNLCK)
}
