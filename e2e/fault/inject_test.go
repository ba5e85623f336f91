package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

// ofGroup is what /proc says of a fanotify group's descriptor.
const ofGroup = "anon_inode:[fanotify]"

// startJudged starts an agent that asks a hash list and then a clamd, so that a file
// meets every system call that there is on an event's way.
func startJudged(t *testing.T, under ...string) *harness.Agent {
	t.Helper()
	clamd := StartClamd(t, suite)
	return suite.StartAgentUnder(t, under, harness.HashScanner(suite.AnyHash(t))+clamdOnly(clamd.Socket)+"tenants:\n"+
		harness.Tenant("default", "{}", "hashes, clamav", "kernelMarks: all", "deadline: "+deadline.String()))
}

// clamdOnly returns the entry of a clamd in a list of scanners that has begun.
func clamdOnly(socket string) string {
	_, entry, _ := strings.Cut(harness.ClamdScanner(socket), "\n")
	return entry
}

// TestInjectedErrors: a system call on the way of an event that fails, as the kernel lets
// it under pressure, costs the openers of that moment a refusal at most. Nobody hangs
// when it is over, nothing bad is read, and nothing stays open. What must not fail at
// all, the answer, is TestInjectedAnswers's.
func TestInjectedErrors(t *testing.T) {
	for _, tt := range []struct {
		call   string
		path   string
		errors []string
	}{
		{"read", ofGroup, []string{"EMFILE", "ENOMEM", "EINTR", "EIO", "EAGAIN"}},
		{"fstat", "", []string{"ENOMEM", "EIO"}},
		{"newfstatat", "", []string{"ENOMEM", "EIO"}},
		{"statx", "", []string{"ENOMEM", "EIO", "EINTR"}},
		{"name_to_handle_at", "", []string{"ENOMEM", "EIO", "EOPNOTSUPP"}},
		{"fanotify_mark", "", []string{"ENOMEM", "ENOSPC"}},
		{"fcntl", "", []string{"ENOMEM", "EAGAIN", "EMFILE"}},
		{"epoll_pwait", "", []string{"EINTR"}},
		{"epoll_wait", "", []string{"EINTR", "ENOMEM"}},
		{"openat", "", []string{"EMFILE", "ENOMEM", "EIO"}},
		{"openat2", "", []string{"EMFILE", "ENOMEM", "EAGAIN"}},
		{"pread64", "", []string{"EIO", "ENOMEM", "EINTR"}},
		{"sendmsg", "", []string{"ENOMEM", "EPIPE", "ETOOMANYREFS"}},
		{"accept4", "", []string{"EMFILE", "ENOMEM", "ECONNABORTED"}},
		{"recvmsg", "", []string{"ENOMEM", "ECONNRESET"}},
		{"pidfd_open", "", []string{"EMFILE", "ENOMEM"}},
		{"readlinkat", "", []string{"ENOMEM", "EIO"}},
	} {
		t.Run(tt.call, func(t *testing.T) {
			agent := startJudged(t)
			wantReads(t, agent)
			agent.AwaitIdle(t)
			before := Take(t, agent)
			run := Load{Processes: 6, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
			run.Await(t, 0, 120)
			for _, errno := range tt.errors {
				endure(t, agent, run, Injection{Call: tt.call, Error: errno, Path: tt.path})
			}
			report := run.Stop(t)
			wantGuarded(t, report)
			agent.AwaitIdle(t)
			wantReads(t, agent)
			agent.AwaitIdle(t)
			wantBaseline(t, agent, before)
		})
	}
}

// injected is how many calls are made to fail before an injection ends.
const injected = 8

// endure injects an error under a load until it has happened often enough, and waits
// until all is well again.
func endure(t *testing.T, agent *harness.Agent, run *Run, i Injection) {
	t.Helper()
	on := i.Start(t, suite, agent.PID())
	await(t, i.Call+" fails with "+i.Error, startPatience, func() error {
		if n := on.Count(t); n < injected {
			stir(t, agent)
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	on.Stop(t)
	if !agent.Runs() {
		t.Fatalf("%s with %s has ended the agent", i.Call, i.Error)
	}
	end := Now()
	awaitRecovery(t, agent, run)
	if stuck := run.Stuck(t, deadline+margin); len(stuck) > 0 {
		t.Errorf("%s with %s: openers hang: %+v", i.Call, i.Error, stuck)
	}
	if report := run.Report(t, end, 0); report.Longest > deadline+margin {
		t.Errorf("%s with %s: an opener waited for %v after it was over", i.Call, i.Error, report.Longest)
	}
}

// stir causes the system calls that a load does not: of a request, of a container that
// comes and goes. It may be refused, but it must not read what is bad.
func stir(t *testing.T, agent *harness.Agent) {
	t.Helper()
	harness.Command(t, suite.Bin("assay"), "--socket", agent.Socket, "status")
	r := suite.Runc().Run(t, harness.Spec{Args: []string{"guest", "read", harness.BadFile}, Gate: agent.Gate("")})
	if r.Hung || strings.Contains(r.Stdout, "bytes") {
		t.Errorf("a container that started meanwhile: %s", r)
	}
}
