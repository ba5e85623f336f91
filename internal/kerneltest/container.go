package kerneltest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Container is a process with a mount namespace of its own, as a runtime's
// init is before it pivots: its root filesystem is the overlay's mount point.
type Container struct {
	Overlay
	PID int
	cmd *exec.Cmd
}

// NewContainer starts a container on an overlay. setup is a shell script run in
// its mount namespace before the first process waits, in the overlay's mount
// point; mounts that it makes are the container's.
func NewContainer(tb testing.TB, files map[string]string, setup string) *Container {
	tb.Helper()
	return StartContainer(tb, NewOverlay(tb, files), setup)
}

// StartContainer is NewContainer on a given overlay.
func StartContainer(tb testing.TB, o Overlay, setup string) *Container {
	tb.Helper()
	// It reads its input to the end, which comes with this process's own. A shell
	// can wait so without a program, of which there is none after a pivot.
	script := "set -e\ncd \"$0\"\n" + setup + "\necho ready\nread -r end\n"
	c := &Container{Overlay: o, cmd: exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, o.Merged)}
	c.cmd.Stderr = os.Stderr
	c.cmd.Dir = "/"
	if _, err := c.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "ready" {
		tb.Fatalf("the container's setup failed: %q, %v", line, err)
	}
	c.PID = c.cmd.Process.Pid
	return c
}

// Kill ends the container's process and waits for it. Killing twice is harmless.
func (c *Container) Kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// Shell runs a shell script in the container's mount namespace, in its root
// filesystem's mount point, and returns what it printed and how it ended. It
// needs a container that did not pivot.
func (c *Container) Shell(tb testing.TB, script string) (string, error) {
	tb.Helper()
	out, err := c.Command(tb, "sh", "-c", "cd \"$0\" && "+script, c.Merged).CombinedOutput()
	return string(out), err
}

// Command is a program to be run in the container's mount namespace, which is
// ended with the test. It needs a container that did not pivot.
func (c *Container) Command(tb testing.TB, name string, args ...string) *exec.Cmd {
	tb.Helper()
	all := append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", c.PID), "--", name}, args...)
	cmd := exec.CommandContext(tb.Context(), "nsenter", all...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Pivot makes the root filesystem the container's root, as a runtime does after
// its hooks. Its files can then be reached below [Container.Root] and, as before,
// below Merged.
func (c *Container) Pivot(tb testing.TB) {
	tb.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has left our namespace
		done <- c.pivot()
	}()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
}

// pivot moves every process of the namespace whose root is the old one.
func (c *Container) pivot() error {
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount namespace of the container: %w", err)
	}
	defer unix.Close(ns)
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"leave the others' root", func() error { return unix.Unshare(unix.CLONE_FS) }},
		{"enter the mount namespace", func() error { return unix.Setns(ns, unix.CLONE_NEWNS) }},
		{"go to the root filesystem", func() error { return unix.Chdir(c.Merged) }},
		{"pivot", func() error { return unix.PivotRoot(".", ".") }},
		{"give up the old root", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
	} {
		if err := step.run(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Root is the container's root directory, seen from outside.
func (c *Container) Root() string { return fmt.Sprintf("/proc/%d/root", c.PID) }
