package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

const (
	cleanRead = harness.CleanFile + ": 13 bytes"
	badRead   = harness.BadFile + ": 68 bytes"
	badDenied = harness.BadFile + ": EPERM"
)

// readBoth reads a clean and a malicious file in a container.
func readBoth(t *testing.T, c harness.Container) harness.Result {
	t.Helper()
	return c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile)
}

// TestReleaseAll: one command gets a node going again whose agent, or whose agent and
// keeper, have stopped answering.
func TestReleaseAll(t *testing.T) {
	for _, wedged := range []struct {
		name                  string
		agentStops, keeperToo bool
		says                  string
	}{
		{"agent", true, false, "has given up everything that it held"},
		{"agent and keeper", true, true, "did not answer, and was killed"},
		{"neither", false, false, "has given up everything that it held"},
	} {
		t.Run(wedged.name, func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t, "grace: 10m"))
			c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			wantRead(t, readBoth(t, c), cleanRead, badDenied)
			keeper := agent.Status(t).Keeper.PID
			if wedged.keeperToo {
				stopProcess(t, keeper)
			}
			read := make(chan harness.Result, 1)
			if wedged.agentStops {
				agent.Signal(t, unix.SIGSTOP)
				go func() { read <- readBoth(t, c) }()
				harness.Eventually(t, "the exec waits", func() error { return blocked(c.PID(t)) })
			}

			r := agent.CLI(t, "release", "--all", "--yes")
			if r.Code != 0 || !strings.Contains(r.Stdout, wedged.says) || !strings.Contains(r.Stdout, "\n1 container runs unguarded now") {
				t.Fatalf("assay release --all: %s", r)
			}
			agent.AwaitEnd(t)
			if wedged.agentStops {
				wantRead(t, <-read, cleanRead, badRead)
			}

			// The next agent guards what comes, and not what was released.
			agent.Restart(t)
			if s := agent.Status(t); !s.Healthy || len(s.Containers) != 0 {
				t.Errorf("the next agent: healthy %v (%q), containers %+v", s.Healthy, s.Problems, s.Containers)
			}
			wantRead(t, readBoth(t, c), cleanRead, badRead)
			wantRead(t, suite.Runc().Run(t, harness.Spec{
				Args: []string{"guest", "read", harness.CleanFile, harness.BadFile}, Gate: agent.Gate(""),
			}), cleanRead, badDenied)
		})
	}
}

// runs reports whether a process has not ended. Nobody may have waited for it.
func runs(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil
}

// stopProcess stops a process of the suite's until the test ends.
func stopProcess(t *testing.T, pid int) {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || exe != suite.Bin("assay-keeper") {
		t.Fatalf("process %d is %q (%v), not the keeper", pid, exe, err)
	}
	p, err := os.FindProcess(pid) // by a pidfd
	if err == nil {
		err = p.Signal(syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
}

// TestReleaseAllOfNobody: a command that finds nothing to release says so.
func TestReleaseAllOfNobody(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t, "grace: 10m"))
	keeper := agent.Status(t).Keeper.PID
	agent.Stop(t)
	harness.Eventually(t, "the keeper ends", func() error {
		if runs(keeper) {
			return errors.New("it is there")
		}
		return nil
	})
	if r := agent.CLI(t, "release", "--all", "--yes"); r.Code != 3 || !strings.Contains(r.Stderr, "nothing to release") {
		t.Errorf("assay release --all: %s", r)
	}
}

// TestReleaseOne: a container is released for good, and no other.
func TestReleaseOne(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	spec := harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")}
	freed, other := suite.Runc().Start(t, spec), suite.Runc().Start(t, spec)
	s := agent.Status(t)
	if len(s.Containers) != 2 || !s.Containers[0].Kept || !s.Containers[1].Kept || len(s.Keeper.Entries) != 2 {
		t.Fatalf("containers %+v, keeper %+v: want both kept", s.Containers, s.Keeper)
	}
	if r := agent.CLI(t, "release", "--container", freed.ID(), "--yes"); r.Code != 0 || !strings.Contains(r.Stdout, "runs unguarded now") {
		t.Fatalf("assay release --container: %s", r)
	}
	wantRead(t, readBoth(t, freed), cleanRead, badRead)
	wantRead(t, readBoth(t, other), cleanRead, badDenied)
	if s := agent.Status(t); len(s.Containers) != 1 || s.Containers[0].ID != other.ID() || len(s.Keeper.Entries) != 1 {
		t.Errorf("containers %+v, keeper %+v: want the other alone", s.Containers, s.Keeper)
	}
	if !strings.Contains(agent.Log(t), "because an operator asked for it") {
		t.Error("the log does not tell")
	}
	agent.Kill(t)
	agent.Restart(t)
	wantRead(t, readBoth(t, freed), cleanRead, badRead)
	wantRead(t, readBoth(t, other), cleanRead, badDenied)
}

// TestUnguardedIsSaid: a container that ran without a gate, because agent and keeper
// both ended, is guarded again, and the status names it as long as it runs.
func TestUnguardedIsSaid(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	stopProcess(t, agent.Status(t).Keeper.PID) // it must not take over
	keeper := agent.Status(t).Keeper
	if keeper.Trouble == "" {
		t.Errorf("a keeper that is stuck is no trouble: %+v", keeper)
	}
	agent.Kill(t)
	if err := unix.Kill(keeper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantRead(t, readBoth(t, c), cleanRead, badRead)

	agent.Restart(t)
	wantRead(t, readBoth(t, c), cleanRead, badDenied)
	s := agent.Status(t)
	if s.TakeOver == nil || !slices.Equal(s.TakeOver.Unguarded, []string{c.ID()}) || s.Healthy ||
		!slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, c.ID()) }) {
		t.Errorf("the status does not name %s: healthy %v, problems %q, take-over %+v", c.ID(), s.Healthy, s.Problems, s.TakeOver)
	}
	c.Kill(t)
	c.Remove(t)
	harness.Eventually(t, "the problem ends with the container", func() error {
		if s := agent.Status(t); !s.Healthy {
			return fmt.Errorf("problems %q", s.Problems)
		}
		return nil
	})
}
