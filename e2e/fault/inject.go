package fault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

// An Injection makes system calls of a running process fail, by strace.
type Injection struct {
	Call  string // name of the system call
	Error string // the errno's name
	When  string // which calls of each thread, as strace has it; "" is 20 times every second
	Path  string // only on descriptors of this; "" is all
}

// An Injected is an injection under way.
type Injected struct {
	cmd *exec.Cmd
	pid int
	log string
}

// Start attaches strace to a process and all its threads.
func (i Injection) Start(tb testing.TB, suite *harness.Suite, pid int) *Injected {
	tb.Helper()
	if i.When == "" {
		i.When = "1..40+2"
	}
	on := &Injected{pid: pid, log: filepath.Join(suite.Scratch(tb), "strace")}
	args := []string{
		// Not the programs that it starts: the agent's keeper.
		"-f", "-b", "execve", "-q", "-o", on.log, "-p", fmt.Sprint(pid), "-e", "trace=" + i.Call,
		"-e", fmt.Sprintf("inject=%s:error=%s:when=%s", i.Call, i.Error, i.When),
	}
	if i.Path != "" {
		args = append(args, "-P", i.Path)
	}
	on.cmd = exec.Command("strace", args...)
	var said bytes.Buffer
	on.cmd.Stderr = &said
	if err := on.cmd.Start(); err != nil {
		harness.Require(tb, "strace", err)
	}
	tb.Cleanup(func() {
		if on.cmd.ProcessState == nil {
			_ = on.cmd.Process.Kill()
			_ = on.cmd.Wait() // killed
		}
	})
	harness.Eventually(tb, "strace is attached to every thread", func() error {
		untraced, err := on.untraced()
		if errors.Is(err, errGone) && on.Count(tb) > 0 {
			return nil // so quickly
		}
		if err == nil && untraced > 0 {
			err = fmt.Errorf("%d threads are not traced: %s", untraced, said.String())
		}
		return err
	})
	return on
}

var errGone = errors.New("the process is gone")

// untraced counts the threads of the process that nobody traces.
func (on *Injected) untraced() (int, error) {
	statuses, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", on.pid))
	if err != nil || len(statuses) == 0 {
		return 0, errors.Join(err, errGone)
	}
	n := 0
	for _, status := range statuses {
		text, err := os.ReadFile(status)
		if err == nil && bytes.Contains(text, []byte("TracerPid:\t0\n")) {
			n++
		}
	}
	return n, nil
}

// Count returns how many calls were made to fail so far.
func (on *Injected) Count(tb testing.TB) int {
	tb.Helper()
	text, err := os.ReadFile(on.log)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Count(string(text), "(INJECTED)")
}

// stracePatience is how long strace may take to detach.
const stracePatience = 3 * time.Second

// Stop detaches strace, and returns how many calls were made to fail. It waits until no
// call fails any more, unless new threads have theirs fail for ever: one that strace has begun to make fail when it detaches fails with
// ENOSYS instead, which no kernel would do.
func (on *Injected) Stop(tb testing.TB) int {
	tb.Helper()
	const quiet = 5
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for looks, last, all := 0, -1, 0; looks < quiet && all < 100; all++ {
		looks++
		if n := on.Count(tb); n != last {
			looks, last = 0, n
		}
		<-tick.C
	}
	if err := on.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Fatal(err)
	}
	// strace 6.1 waits for ever if a thread is just about to start a program. The kernel
	// detaches what a tracer that is killed has traced.
	hung := time.AfterFunc(stracePatience, func() { _ = on.cmd.Process.Kill() })
	defer hung.Stop()
	_ = on.cmd.Wait() // strace ends with a signal, or with whom it traced
	return on.Count(tb)
}
