package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A container is what the agent takes for one: an overlay, and a process with a
// mount namespace of its own. It has not pivoted: its root filesystem is at root.
type container struct {
	id   string
	dir  string
	root string
	pid  int
	stop func()
}

// newContainer makes a container whose upper directory is in the scratch directory.
func (b *bench) newContainer(layers ...string) (*container, error) {
	return newContainer(b.scratch, layers...)
}

// newContainer mounts an overlay over the layers, topmost first, and starts a
// container's first process. What it writes goes below base.
func newContainer(base string, layers ...string) (*container, error) {
	dir, err := os.MkdirTemp(base, "container-")
	if err != nil {
		return nil, err
	}
	c := &container{id: "bench-" + filepath.Base(dir), dir: dir, root: filepath.Join(dir, "root")}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{c.root, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(layers, ":"), upper, work)
	if err := unix.Mount("overlay", c.root, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount an overlay: %w", err)
	}
	init, err := initProcess()
	if err != nil {
		return nil, err
	}
	c.pid = init.Process.Pid
	c.stop = func() {
		_ = init.Process.Kill()
		_ = init.Wait()
	}
	return c, nil
}

// close ends the container and removes what it wrote.
func (c *container) close() {
	c.stop()
	_ = unix.Unmount(c.root, unix.MNT_DETACH)
	_ = os.RemoveAll(c.dir)
}

// initProcess starts what the agent takes for a container's first process: one
// with a mount namespace of its own.
func initProcess() (*exec.Cmd, error) {
	c := exec.Command("sleep", "infinity")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	return c, c.Start()
}

// inMountsOf returns a command that runs in a process's mount namespace.
func inMountsOf(ctx context.Context, pid int, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "--", name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	c.Stderr = os.Stderr
	return c
}
