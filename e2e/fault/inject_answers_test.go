package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

// everyCall makes a system call fail for good.
const everyCall = "1+"

// TestInjectedAnswers: an answer that the kernel does not take is given again; if it is
// not taken for good, the agent must not go on, because its opener would wait for ever.
func TestInjectedAnswers(t *testing.T) {
	t.Run("for a moment", func(t *testing.T) {
		agent := startJudged(t)
		run := Load{Processes: 6, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
		run.Await(t, 0, 120)
		for _, errno := range []string{"EINTR", "ENOMEM"} {
			endure(t, agent, run, Injection{Call: "write", Error: errno, Path: ofGroup})
		}
		wantGuarded(t, run.Stop(t))
		agent.AwaitIdle(t)
	})
	for _, errno := range []struct{ name, text string }{
		{"EIO", "input/output error"}, {"ENOSPC", "no space left on device"}, {"EBADF", "bad file descriptor"},
	} {
		t.Run("for good/"+errno.name, func(t *testing.T) { unanswerable(t, errno.name, errno.text, true) })
	}
	t.Run("for good/unkept", func(t *testing.T) { unanswerable(t, "EIO", "input/output error", false) })
}

// unanswerable lets every answer of an agent fail, and expects the agent to end and its
// openers to go on: with a keeper under the next agent, without one unguarded.
func unanswerable(t *testing.T, errno, text string, kept bool) {
	t.Helper()
	config := "tenants:\n" + harness.Tenant("default", "{}", "hashes", "grace: "+grace.String(), "deadline: "+deadline.String())
	if !kept {
		config += "keeper: {backend: off}\n"
	}
	agent := suite.StartAgent(t, harness.HashScanner(suite.AnyHash(t))+config)
	run := Load{Processes: 6, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 120)

	on := Injection{Call: "write", Error: errno, When: everyCall, Path: ofGroup}.Start(t, suite, agent.PID())
	if code := agent.AwaitEnd(t); code <= 0 {
		t.Errorf("the agent ended with exit code %d, want an error", code)
	}
	if n := on.Stop(t); n == 0 {
		t.Error("no answer failed")
	}
	if log := agent.Log(t); !strings.Contains(log, text) {
		t.Errorf("the agent does not say %q:\n%s", text, log)
	}
	if kept {
		agent.Again(t)
		awaitRecovery(t, agent, run)
	}
	from := Now()
	awaitEach(t, run, from, 20)
	if stuck := run.Stuck(t, grace+deadline+margin); len(stuck) > 0 {
		t.Errorf("openers hang: %+v", stuck)
	}
	report := run.Stop(t)
	if report.Longest > grace+deadline+margin {
		t.Errorf("an opener waited for %v", report.Longest)
	}
	// Without a keeper the containers' marks end with the agent, and bad files are read.
	if kept {
		wantGuarded(t, report)
		agent.AwaitIdle(t)
	} else if report.Bad.BadBytes == 0 {
		t.Error(fmt.Errorf("without agent and keeper something is still guarded: %v", report))
	}
}
