package pidfd_test

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/pidfd"
)

func TestKill(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	other, err := pidfd.Duplicate(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if pidfd.Exited(fd, 0) || pidfd.Exited(other, 10*time.Millisecond) {
		t.Error("a living process has exited")
	}
	if err := pidfd.Kill(other, time.Minute); err != nil {
		t.Error(err)
	}
	if !pidfd.Exited(fd, 0) {
		t.Error("a killed process has not exited")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if err := pidfd.Kill(fd, 0); err != nil {
		t.Errorf("killing what has ended: %v", err)
	}
}
