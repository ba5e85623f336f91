package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/lockfile"
	"github.com/assay-project/assay/internal/pidfd"
)

// endPatience is how long a process that was killed may take to be gone.
const endPatience = 5 * time.Second

// A holder is the process that holds a lock: the agent, or the keeper. It is followed
// by a pidfd, so that nobody else is met who gets its number.
type holder struct {
	program string
	pid     int
	pidfd   int
}

// holderOf returns who holds the lock file, nil if nobody does. It fails if that is not
// the program it should be: what is killed by mistake was somebody's.
func holderOf(lock, program string) (*holder, error) {
	pid, err := lockfile.PID(lock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if pid <= 1 {
		return nil, nil // nobody has got it yet
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil // the file outlives the process
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	h := &holder{program: program, pid: pid, pidfd: fd}
	held, err := locks(pid, lock)
	if err == nil && held {
		err = h.check(lock)
	}
	if err != nil || !held {
		h.close()
		return nil, err
	}
	return h, nil
}

// locks reports whether the process holds a flock on the file.
func locks(pid int, file string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	list, err := os.Open("/proc/locks")
	if err != nil {
		return false, err
	}
	defer list.Close()
	// 1: FLOCK  ADVISORY  WRITE 812 00:19:1443 0 EOF
	who, what := strconv.Itoa(pid), ":"+strconv.FormatUint(st.Ino, 10)
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) >= 6 && f[1] == "FLOCK" && f[4] == who && strings.HasSuffix(f[5], what) {
			return true, nil
		}
	}
	return false, lines.Err()
}

// check makes sure that the process runs the program.
func (h *holder) check(lock string) error {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", h.pid))
	if err != nil {
		return fmt.Errorf("process %d, which holds %s: %w", h.pid, lock, err)
	}
	// An upgrade replaces the file under the process.
	if name := filepath.Base(strings.TrimSuffix(exe, " (deleted)")); name != h.program {
		return usage("find out what it is; nothing was done",
			"%s is locked by process %d, which is %s and not %s", lock, h.pid, exe, h.program)
	}
	return nil
}

// kill kills the process and waits for its end.
func (h *holder) kill() error {
	err := pidfd.Kill(h.pidfd, endPatience)
	switch {
	case errors.Is(err, pidfd.ErrAlive):
		return &failure{
			code:   exitFinding,
			err:    fmt.Errorf("%s (pid %d) was killed and has not ended within %v: it hangs in the kernel", h.program, h.pid, endPatience),
			remedy: fmt.Sprintf("see /proc/%d/stack; a network or FUSE server that does not answer may hold it", h.pid),
		}
	case err != nil:
		return fmt.Errorf("kill %s (pid %d): %w", h.program, h.pid, err)
	}
	return nil
}

func (h *holder) close() {
	if h != nil {
		_ = unix.Close(h.pidfd)
	}
}
