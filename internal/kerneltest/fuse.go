package kerneltest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ServeFUSE serves source at mountpoint until the test ends, and returns the
// server, which a test may stop and continue. source has a file named "file".
func ServeFUSE(tb testing.TB, source, mountpoint string) *os.Process {
	tb.Helper()
	cmd := exec.Command("bindfs", "-f", "--no-allow-other", "-o", "attr_timeout=3600,entry_timeout=3600", source, mountpoint)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	end := make(chan struct{})
	if err := startHeld(cmd, end); err != nil {
		tb.Fatalf("%v (apt-get install bindfs)", err)
	}
	tb.Cleanup(func() {
		defer close(end)
		_ = cmd.Process.Signal(unix.SIGCONT)
		_ = unix.Unmount(mountpoint, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for {
		if _, err := os.Stat(filepath.Join(mountpoint, "file")); err == nil {
			return cmd.Process
		}
		if err := cmd.Process.Signal(syscall.Signal(0)); errors.Is(err, os.ErrProcessDone) || tb.Context().Err() != nil {
			tb.Fatal("bindfs did not mount")
		}
	}
}

// startHeld starts a program on a thread that stays until end is closed: with its
// thread the parent ends, for PR_SET_PDEATHSIG, and event readers end theirs.
func startHeld(cmd *exec.Cmd, end <-chan struct{}) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-end
	}()
	return <-started
}
