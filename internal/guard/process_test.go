package guard

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProcessThatCannotBeAwaited: a process whose end nobody would hear of is not held,
// and its descriptor is closed.
func TestProcessThatCannotBeAwaited(t *testing.T) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0) // it blocks, so the poller does not get it
	if err != nil {
		t.Fatal(err)
	}
	if p, err := holdProcess(os.Getpid(), fd); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("want it refused: %v, %v", p, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("its descriptor is still open: %v", err)
	}
	p, err := openProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.alive(); err != nil {
		t.Error(err)
	}
}
