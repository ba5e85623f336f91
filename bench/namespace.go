package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise runs this program again as the first process of new mount and pid
// namespaces, which ends all its processes and mounts with it, and removes the
// scratch directory afterwards. Nothing is mounted there in this namespace.
func supervise() error {
	scratch, err := os.MkdirTemp("", "assay-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	defer removeCgroups()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the child is killed if this thread ends
	c := exec.Command(self, os.Args[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.Env = append(os.Environ(), scratchEnv+"="+scratch, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL, Setpgid: true,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		err = c.Wait()
		close(ended)
	}()
	select {
	case s := <-signals:
		_ = c.Process.Kill()
		<-ended
		return fmt.Errorf("stopped by %v; nothing is left", s)
	case <-ended:
		if _, failed := errors.AsType[*exec.ExitError](err); failed {
			return errors.New("failed; nothing is left")
		}
		return err
	}
}

// removeCgroups removes the control groups of containers that runc could not end.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/assay-bench-*", "/sys/fs/cgroup/*/assay-bench-*"} {
		left, _ := filepath.Glob(pattern) // the pattern is good
		for _, dir := range left {
			_ = os.Remove(dir)
		}
	}
}

// ownMounts makes sure that no mount is seen outside, and mounts a proc for the
// new pid namespace.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}
