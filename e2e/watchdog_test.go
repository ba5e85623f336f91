package e2e

import (
	"bufio"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// failAnswers makes every answer that the agent gives to the kernel fail with errno,
// from its return until the agent ends.
func failAnswers(t *testing.T, agent *harness.Agent, errno string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-p", strconv.Itoa(agent.PID()), "-P", "anon_inode:[fanotify]",
		"-e", "trace=write", "-e", "inject=write:error="+errno)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // ends with the agent, or with the test
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "attached") { // to all threads: it says so once
			break
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines.Scan() { // so that it does not wait for a reader
		}
	}()
}

// TestAnswerFails: an agent that cannot answer says so and ends, and whoever waits for
// it goes on.
func TestAnswerFails(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\"", "deadline: 60s"))
	s := startStepper(t, agent, `try() { if read line < "$1"; then echo read; else echo refused; fi 2>/dev/null; }
		read go < /vol/go1
		try /data/many/00
		read go < /vol/go2
		try /data/many/01
		try `+harness.BadFile, nil)
	s.step(t, func() { failAnswers(t, agent, "EIO") })
	if code := agent.AwaitEnd(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if log := agent.Log(t); !strings.Contains(log, "assayd: fanotify: answer an event: input/output error") {
		t.Error("the log does not tell why the agent ended")
	}
	agent.Restart(t)
	s.step(t)
	got := strings.Split(strings.TrimSpace((<-s.result).Stdout), "\n")
	if len(got) != 3 || got[1] != "read" || got[2] != "refused" {
		t.Errorf("the container printed %q, want any end for the first file, and the gate for the others", got)
	}
	if st := agent.Status(t).Events; st.FailedAnswers != 0 || st.Read == 0 {
		t.Errorf("the next agent: %+v", st)
	}
}

// TestWhoWaits: the status tells how many openers wait, and for how long, and has none
// once their deadline has come.
func TestWhoWaits(t *testing.T) {
	clamd := startClamd(t)
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "deadline: 3s", "onTimeout: allow"))
	s := startStepper(t, agent, `read go < /vol/go1; read line < /data/many/00 && echo read`, nil)
	if tn := agent.Status(t).Tenants[0]; tn.Pending != 0 || tn.OldestMicros != 0 {
		t.Errorf("before anybody waits: %+v", tn)
	}
	s.stepWithout(t, clamd)
	harness.Eventually(t, "an opener is seen to wait", func() error {
		if tn := agent.Status(t).Tenants[0]; tn.Pending != 1 || tn.OldestMicros == 0 || tn.Held != 1 {
			return fmt.Errorf("%+v", tn)
		}
		return nil
	})
	if r := <-s.result; r.Stdout != "read\n" {
		t.Errorf("the opener after its deadline: %s", r)
	}
	harness.Eventually(t, "nobody waits", func() error {
		if tn := agent.Status(t).Tenants[0]; tn.Pending != 0 || tn.OldestMicros != 0 {
			return fmt.Errorf("%+v", tn)
		}
		return nil
	})
}

// TestDescriptorBudget: an agent with few descriptors shares them out and guards, and
// one that may have many uses no more than a successor can try.
func TestDescriptorBudget(t *testing.T) {
	agent := suite.StartAgentUnder(t, []string{"prlimit", "--nofile=256:256"}, anyHash(t, "scanAhead: \"off\""))
	wantEveryRead(t, suite.Runc().Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
	d := agent.Status(t).Descriptors
	sum := 0
	for _, share := range d.Shares {
		sum += share.Max
	}
	if d.Limit != 256 || d.Open == 0 || sum == 0 || sum > d.Limit {
		t.Errorf("the budget is %+v", d)
	}
}
