package fanotify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Features lists what Assay asks of the kernel, most basic first.
func Features() []Feature {
	return []Feature{
		{
			Name: "permission events on overlay superblocks", Since: "4.20", Required: true,
			Without: "nothing can be guarded",
			Remedy:  "run as root with CAP_SYS_ADMIN on a kernel built with CONFIG_FANOTIFY_ACCESS_PERMISSIONS and CONFIG_OVERLAY_FS",
			Probe:   probeRoundTrip,
		},
		{
			Name: "mount marks", Since: "2.6.37", Required: true,
			Without: "volumes that are shared with the host cannot be guarded",
			Remedy:  "run as root with CAP_SYS_ADMIN on a kernel built with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
			Probe:   func() error { return probeMark("mount mark", unix.FAN_MARK_MOUNT, OpOpen) },
		},
		{
			Name: "exec permission events", Since: "5.0", Required: true,
			Without: "records cannot tell an exec from an open",
			Remedy:  "use a kernel from 5.0 on, or `on: [open]`, which gates execs too",
			Probe:   func() error { return probeMark("exec event", unix.FAN_MARK_FILESYSTEM, OpExec) },
		},
		{
			Name: "evictable ignore marks", Since: "6.0",
			Without: "every open of a FIFO or device of a container asks the agent, and a FIFO's writer may briefly meet the agent as its reader",
			Remedy:  "use a kernel from 6.0 on",
			Probe:   probeIgnore,
		},
		{
			Name: "errors of event descriptors", Since: "6.13",
			Without: "an open that the kernel denies because it could not open the file for the agent is counted without naming the opener",
			Remedy:  "use a kernel from 6.13 on",
			Probe:   probeFDError,
		},
		{
			Name: "pidfd", Since: "5.10", Required: true,
			Without: "a container cannot be told from another process that got its pid",
			Remedy:  "use a kernel from 5.10 on",
			Probe:   probePidfd,
		},
		{
			Name: "openat2 and mount ids", Since: "5.8", Required: true,
			Without: "a container's mounts cannot be reached safely",
			Remedy:  "use a kernel from 5.8 on",
			Probe:   probeMountID,
		},
	}
}

// probeRoundTrip denies one open on a scratch overlay and looks whether the
// opener was refused.
func probeRoundTrip() error {
	return onOverlay(func(dir string) error {
		g, err := probeGroup(groupFlags)
		if err != nil {
			return err
		}
		defer g.Close()
		if err := g.markPath(dir, unix.FAN_MARK_FILESYSTEM, OpOpen); err != nil {
			return notSupported("superblock mark on overlay", err)
		}
		// The opener is another thread, which does not see this thread's mounts.
		dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the scratch overlay: %w", err)
		}
		defer unix.Close(dirfd)
		denied := make(chan error, 1)
		go func() {
			fd, err := unix.Openat(dirfd, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				_ = unix.Close(fd)
			}
			denied <- err
		}()
		if err := g.denyOne(); err != nil {
			return err
		}
		if err := <-denied; !errors.Is(err, unix.EPERM) {
			return notSupported("deny an open on overlay", fmt.Errorf("the opener got %w", errOrNone(err)))
		}
		return nil
	})
}

func errOrNone(err error) error {
	if err == nil {
		return errors.New("the file")
	}
	return err
}

// denyOne waits for one event and denies it. When it fails, closing the group
// lets the opener go.
func (g *Group) denyOne() error {
	fds := []unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}
	err := ignoringEINTR(func() error {
		n, err := unix.Poll(fds, 2000)
		if err == nil && n == 0 {
			return unix.ETIMEDOUT
		}
		return err
	})
	if err != nil {
		return notSupported("event for an open on overlay", err)
	}
	var buf [readBuffer]byte
	n, errno := readEvents(g.fd, buf[:])
	if errno != 0 {
		return fmt.Errorf("read an event: %w", errno)
	}
	m, _, err := parseEvent(buf[:n])
	if err != nil {
		return err
	}
	g.respond(m.fd, Deny)
	if m.fd >= 0 {
		_ = unix.Close(int(m.fd))
	}
	return nil
}

func probeGroup(flags uint) (*Group, error) {
	fd, err := unix.FanotifyInit(flags, eventFlags)
	switch {
	case errors.Is(err, unix.EMFILE):
		return nil, fmt.Errorf("%w: %w", ErrGroupLimit, err) // says nothing about the feature
	case err != nil:
		return nil, notSupported("fanotify group", err)
	}
	return newGroup(fd), nil
}

func (g *Group) markPath(path string, kind uint, ops Ops) error {
	return ignoringEINTR(func() error {
		return unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|kind, uint64(ops), unix.AT_FDCWD, path)
	})
}

func probeMark(what string, kind uint, ops Ops) error {
	return onOverlay(func(dir string) error {
		g, err := probeGroup(groupFlags)
		if err != nil {
			return err
		}
		defer g.Close()
		if err := g.markPath(dir, kind, ops); err != nil {
			return notSupported(what, err)
		}
		return nil
	})
}

func probeIgnore() error {
	return onOverlay(func(dir string) error {
		g, err := probeGroup(groupFlags)
		if err != nil {
			return err
		}
		defer g.Close()
		err = g.markPath(filepath.Join(dir, "file"), unix.FAN_MARK_IGNORE_SURV|unix.FAN_MARK_EVICTABLE, OpOpen|OpExec)
		if err != nil {
			return notSupported("evictable ignore mark", err)
		}
		return nil
	})
}

func probeFDError() error {
	g, err := probeGroup(groupFlags | unix.FAN_REPORT_FD_ERROR)
	if err != nil {
		return err
	}
	g.Close()
	return nil
}

func probePidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK)
	if err != nil {
		return notSupported("non-blocking pidfd", err)
	}
	_ = unix.Close(fd)
	return nil
}

func probeMountID() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/proc/self", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		return notSupported("openat2", err)
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &stx); err != nil {
		return notSupported("statx", err)
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 {
		return notSupported("mount id in statx", unix.ENOSYS)
	}
	return nil
}

// onOverlay calls probe with the mount point of a scratch overlay that holds one
// file named "file". The mount lives in a mount namespace of its own, on a thread
// that ends with the probe: nothing of it is left, whatever happens.
func onOverlay(probe func(dir string) error) error {
	scratch, err := os.MkdirTemp("", "assay-probe-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer os.RemoveAll(scratch)
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread has lost the host's namespace
		result <- inOwnNamespace(scratch, probe)
	}()
	return <-result
}

func inOwnNamespace(scratch string, probe func(dir string) error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return notSupported("private mount namespace (needs CAP_SYS_ADMIN)", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// A tmpfs below, so that the overlay's layers are not on another overlay.
	if err := unix.Mount("assay-probe", scratch, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a scratch tmpfs: %w", err)
	}
	dirs := map[string]string{}
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		dirs[name] = filepath.Join(scratch, name)
		if err := os.Mkdir(dirs[name], 0o700); err != nil {
			return fmt.Errorf("scratch directory: %w", err)
		}
	}
	//nolint:forbidigo // a scratch file that nobody watches
	if err := os.WriteFile(filepath.Join(dirs["lower"], "file"), []byte("probe"), 0o600); err != nil {
		return fmt.Errorf("scratch file: %w", err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dirs["lower"], dirs["upper"], dirs["work"])
	if err := unix.Mount("overlay", dirs["merged"], "overlay", 0, options); err != nil {
		return notSupported("mount an overlay", err)
	}
	return probe(dirs["merged"])
}
