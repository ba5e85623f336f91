package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cleanupContext returns the context of a clean-up: a test's own context is over
// by then.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// close removes the suite's own things and then reports every process, mount and
// cgroup of the run that is still there; it removes those too.
func (s *Suite) close() error {
	ctx, cancel := cleanupContext()
	defer cancel()
	err := errors.Join(
		// Runtimes and conmon end a moment after their container.
		eventually(ctx, 10*time.Second, s.noProcesses),
		s.noMounts(),
		eventually(ctx, 10*time.Second, s.noCgroups),
	)
	if removeErr := os.RemoveAll(s.dir); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("scratch directory: %w", removeErr))
	}
	return err
}

// noMounts reports mounts below the scratch directory and takes them away.
func (s *Suite) noMounts() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], s.dir+"/") {
			continue
		}
		// podman keeps its storage directory mounted on itself.
		if fields[4] != filepath.Join(s.dir, "podman", "storage", "overlay") {
			errs = append(errs, fmt.Errorf("mount %s", fields[4]))
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}

// noProcesses reports living processes that have the scratch directory in their
// arguments or their environment: agents, runtimes, conmon, scanners.
func (s *Suite) noProcesses() error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("processes: %w", err)
	}
	var errs []error
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that is gone by now or a zombie reads as empty.
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(args, []byte(s.dir)) || bytes.Contains(env, []byte(s.dir)) {
			errs = append(errs, fmt.Errorf("process %d: %s", pid, bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
	}
	return errors.Join(errs...)
}

// noCgroups removes the run's cgroups and reports those with processes in them.
func (s *Suite) noCgroups() error {
	var errs []error
	for _, root := range s.cgroups() {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			pids, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if len(bytes.TrimSpace(pids)) > 0 {
				errs = append(errs, fmt.Errorf("cgroup %s holds processes %q", path, bytes.Fields(pids)))
			}
			return err
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		if err := removeTree(root); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cgroups returns the run's cgroup in every hierarchy that has it.
func (s *Suite) cgroups() []string {
	found := []string{filepath.Join("/sys/fs/cgroup", s.cgroup)}
	v1, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", s.cgroup))
	if err == nil {
		found = append(found, v1...)
	}
	return found
}

// removeTree removes a cgroup and those below it, deepest first.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) {
		if rmErr := os.Remove(dir); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}
