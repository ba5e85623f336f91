package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestAgentGone: with no agent within the grace time, opens get what the tenant's
// policy says, without one having been scanned, until there is an agent again.
func TestAgentGone(t *testing.T) {
	for _, gone := range []struct {
		name string
		how  func(*harness.Agent, testing.TB)
	}{
		{"killed", (*harness.Agent).Kill},
		{"stuck", (*harness.Agent).Stuck},
	} {
		t.Run(gone.name+"/deny", func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t, "grace: 1s"))
			c, loop := startReader(t, agent, harness.CleanFile)
			loop.await(t, "13 bytes")
			gone.how(agent, t)
			loop.await(t, "EPERM")
			agent.Restart(t)
			loop.await(t, "13 bytes")
			wantGuarded(t, agent, c)
			wantReason(t, agent, "agent-gone")
		})
		t.Run(gone.name+"/allow", func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t, "grace: 1s", "onAgentGone: allow"))
			c, loop := startReader(t, agent, harness.BadFile)
			loop.await(t, "EPERM")
			gone.how(agent, t)
			loop.await(t, "68 bytes")
			agent.Restart(t)
			loop.await(t, "EPERM")
			wantGuarded(t, agent, c)
			wantReason(t, agent, "agent-gone")
		})
	}
}

// TestKeeperDies: a keeper that ends or is stuck costs nothing while the agent works,
// and the agent finds another.
func TestKeeperDies(t *testing.T) {
	for _, end := range []struct {
		name   string
		signal syscall.Signal
	}{{"killed", syscall.SIGKILL}, {"terminated", syscall.SIGTERM}, {"stuck", syscall.SIGSTOP}} {
		t.Run(end.name, func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t))
			c, loop := startReader(t, agent, harness.CleanFile)
			loop.await(t, "13 bytes")
			first := agent.Keeper(t)
			if err := syscall.Kill(first, end.signal); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, "another keeper", func() error {
				if pids := agent.Keepers(); len(pids) != 1 || pids[0] == first {
					return fmt.Errorf("keepers are %v, the first was %d", pids, first)
				}
				return nil
			})
			loop.await(t, "13 bytes")
			harness.Eventually(t, "the container is in its hands", func() error {
				if log := agent.Log(t); strings.Count(log, "in the keeper's hands") < 2 {
					return errors.New("the agent does not say so")
				}
				return nil
			})
			agent.Kill(t)
			agent.Restart(t)
			loop.await(t, "13 bytes")
			wantGuarded(t, agent, c)
			if n := strings.Count(agent.Log(t), "ran without a gate"); n > 0 {
				t.Error("the container was unguarded for a moment")
			}
		})
	}
}

// TestBothDie: without keeper and agent the kernel lets everything through. The next
// agent guards the containers again, and says what happened.
func TestBothDie(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	c, loop := startReader(t, agent, harness.BadFile)
	loop.await(t, "EPERM")
	if err := syscall.Kill(agent.Keeper(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	agent.Kill(t)
	loop.await(t, "68 bytes")
	agent.Restart(t)
	loop.await(t, "EPERM")
	wantGuarded(t, agent, c)
	if !strings.Contains(agent.Log(t), "ran without a gate") {
		t.Error("the agent does not say that the container was unguarded")
	}
}

// TestComeAndGo: containers that ended while there was no agent are not taken over,
// and their storage is free at once.
func TestComeAndGo(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	ended, loop := startReader(t, agent, harness.CleanFile)
	loop.await(t, "13 bytes")
	stays, other := startReader(t, agent, harness.BadFile)
	other.await(t, "EPERM")
	agent.Kill(t)
	ended.Kill(t)
	ended.Remove(t)
	agent.Restart(t)
	other.await(t, "EPERM")
	wantGuarded(t, agent, stays)
	if s := agent.Status(t); len(s.Containers) != 1 || s.Containers[0].ID != stays.ID() {
		t.Errorf("containers after the take-over: %+v", s.Containers)
	}
}

// A reader is a process in a container that reads one file for ever, and tells of it
// in another, which it opens only once: whoever answers its opens does not stop it.
type reader struct{ file string }

// startReader starts a container with such a process. It ends with the test.
func startReader(t *testing.T, agent *harness.Agent, path string) (harness.Container, *reader) {
	t.Helper()
	dir := suite.HostDirectory(t, nil)
	c := suite.Runc().Start(t, harness.Spec{
		Args: []string{"guest", "reread", path, "/vol/said"}, Gate: agent.Gate(""),
		Binds: []harness.Bind{{Source: dir, Destination: "/vol"}},
	})
	return c, &reader{file: filepath.Join(dir, "said")}
}

// await waits until a read that began after the call gave want.
func (r *reader) await(t *testing.T, want string) {
	t.Helper()
	before, _ := r.last()
	harness.Eventually(t, "a read gives "+want, func() error {
		n, gave := r.last()
		if n <= before+1 || gave != want {
			return fmt.Errorf("read %d gave %q; %d had been made before", n, gave, before)
		}
		return nil
	})
}

// last returns how many reads there were, and what the last one gave.
func (r *reader) last() (n int, gave string) {
	said, err := os.ReadFile(r.file)
	if err != nil {
		return 0, ""
	}
	number, gave, _ := strings.Cut(strings.TrimSpace(string(said)), " ")
	n, _ = strconv.Atoi(number) // 0 if there is nothing yet
	return n, gave
}

// wantGuarded checks that a container is guarded: good files are read, bad ones not.
func wantGuarded(t *testing.T, agent *harness.Agent, c harness.Container) {
	t.Helper()
	wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile),
		harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")
	s := agent.Status(t)
	for _, one := range s.Containers {
		if one.ID == c.ID() {
			return
		}
	}
	t.Errorf("the agent does not list container %s", c.ID())
}

// wantReason checks that the default tenant's counters have the reason.
func wantReason(t *testing.T, agent *harness.Agent, reason string) {
	t.Helper()
	if n := agent.Status(t).Reason("default", reason); n == 0 {
		t.Errorf("nothing is counted as %s", reason)
	}
}
