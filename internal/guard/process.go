package guard

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/pidfd"
)

// A process is a process held by pidfd. What was read below /proc/PID since
// openProcess is about this process if alive still holds afterwards: its pid
// cannot have been reused in between.
type process struct {
	pid  int
	file *os.File // pidfd, non-blocking, so that waiting parks a goroutine
}

// errExited says that the process ended.
var errExited = errors.New("the process has exited")

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errExited
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	return holdProcess(pid, fd)
}

// holdProcess takes over a pidfd. It fails where nobody would hear of the exit: a
// container that is guarded without that would never be released.
func holdProcess(pid, fd int) (*process, error) {
	file := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))
	// NewFile does not tell when the runtime's poller refuses a descriptor.
	if err := file.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("pidfd of %d: wait for its exit: %w", pid, err), file.Close())
	}
	return &process{pid: pid, file: file}, nil
}

// alive returns nil, or errExited. It never waits, not even for wait.
func (p *process) alive() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", p.pid, err)
	}
	exited := false
	if err := raw.Control(func(fd uintptr) { exited = pidfd.Exited(int(fd), 0) }); err != nil {
		return fmt.Errorf("look at process %d: %w", p.pid, err)
	}
	if exited {
		return errExited
	}
	return nil
}

// wait returns nil when the process has exited, or an error once close is
// called.
func (p *process) wait() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", p.pid, err)
	}
	if err := raw.Read(func(fd uintptr) bool { return pidfd.Exited(int(fd), 0) }); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return nil
}

func (p *process) close() { _ = p.file.Close() }

// started returns when the process started, in the kernel's ticks since boot
// (proc_pid_stat(5), field 22): with its number it names the process.
func (p *process) started() (uint64, error) {
	text, err := os.ReadFile(p.proc("stat")) //nolint:forbidigo // procfs
	if err != nil {
		return 0, fmt.Errorf("start of process %d: %w", p.pid, err)
	}
	// The second field is a name in parentheses, which can have anything in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("start of process %d: %q is not understood", p.pid, text)
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start of process %d: %w", p.pid, err)
	}
	return ticks, nil
}

// userHZ is how many of the kernel's ticks a second has where it tells users of them
// (USER_HZ; 100 on every architecture that Go runs on).
const userHZ = 100

// age returns for how long the process has been there.
func (p *process) age() (time.Duration, error) {
	ticks, err := p.started()
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("time since boot: %w", err)
	}
	return time.Duration(now.Nano()) - time.Duration(ticks)*time.Second/userHZ, nil //nolint:gosec // since boot
}

// isIn reports whether the process lives in the mount namespace ns. A process
// that is ending leaves its namespace before its pidfd tells of its exit, and the
// kernel may give the namespace's number to the next one.
func (p *process) isIn(ns unix.Stat_t) bool {
	now, err := mountNamespace(p.proc(""))
	return err == nil && sameNamespace(now, ns) && p.alive() == nil
}

// proc returns the path of a file in the process's /proc directory.
func (p *process) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", p.pid, name) }

// mountNamespace identifies the process's mount namespace.
func mountNamespace(procDir string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Stat(path.Join(procDir, "ns/mnt"), &st)
	if err != nil {
		return st, fmt.Errorf("mount namespace of %s: %w", procDir, err)
	}
	return st, nil
}

// root opens the process's view of the directory rootfs, an absolute path in its
// mount namespace. The descriptor is O_PATH: opening it raises no event, even if
// the container is already guarded.
func (p *process) root(rootfs string) (int, error) {
	nsRoot, err := unix.Open(p.proc("root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("root directory of process %d: %w", p.pid, err)
	}
	defer unix.Close(nsRoot)
	// The host's own symlinks in the path (a storage directory moved elsewhere)
	// are followed as seen from the process, as the runtime did.
	return openBeneath(nsRoot, rootfs, unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// openBeneath opens p, taken as absolute from dirfd, as O_PATH.
func openBeneath(dirfd int, p string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: resolve}
	rel := path.Join(".", p)
	for {
		fd, err := unix.Openat2(dirfd, rel, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue // EAGAIN: a rename or mount raced with the walk (openat2(2))
		}
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", p, err)
		}
		return fd, nil
	}
}

// mountID returns the id of the mount that fd lies on, as in mountinfo.
func mountID(fd int) (int, error) {
	stx, err := mountStat(fd)
	return int(stx.Mnt_id), err
}

// isMountRoot reports whether fd is the root of a mount, rather than something
// below it.
func isMountRoot(fd int) (bool, error) {
	stx, err := mountStat(fd)
	return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

func mountStat(fd int) (unix.Statx_t, error) {
	var stx unix.Statx_t
	// AT_STATX_DONT_SYNC: a network or FUSE filesystem must not be asked.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stx); err != nil {
		return stx, fmt.Errorf("mount id: %w", err)
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 {
		return stx, errors.New("mount id: this kernel does not tell (5.8 does)")
	}
	return stx, nil
}
