package lockfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Take(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := PID(path); err != nil || pid != os.Getpid() {
		t.Errorf("pid %d, error %v; want ours, %d", pid, err, os.Getpid())
	}
	if fd, err := Take(path, askEvery); !errors.Is(err, ErrHeld) {
		t.Fatalf("second lock: descriptor %d, error %v; want ErrHeld", fd, err)
	}
	if err := unix.Close(first); err != nil {
		t.Fatal(err)
	}
	again, err := Take(path, 0)
	if err != nil {
		t.Fatalf("after the first holder: %v", err)
	}
	_ = unix.Close(again)
}

// A holder that is ending is waited for.
func TestTakeWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Take(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-time.After(2 * askEvery)
		_ = unix.Close(first)
	}()
	second, err := Take(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(second)
}

func TestPIDUnwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if _, err := PID(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if pid, err := PID(path); pid != 0 || err != nil {
		t.Errorf("empty file: pid %d, error %v", pid, err)
	}
}
