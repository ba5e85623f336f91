package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestTakeOver: while there is no agent, a container's opens wait; the next agent
// answers them, and guards on.
func TestTakeOver(t *testing.T) {
	for _, end := range ends() {
		t.Run(end.name, func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t))
			c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			// Marked in the kernel, which must not outlive the agent.
			for range 4 {
				wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile), harness.CleanFile+": 13 bytes")
			}
			end.how(agent, t)

			read := make(chan harness.Result, 1)
			go func() { read <- c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile) }()
			harness.Eventually(t, "the exec waits", func() error { return blocked(c.PID(t)) })
			agent.Restart(t)
			wantRead(t, <-read, harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")

			wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile),
				harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")
			if s := agent.Status(t); !s.Healthy || len(s.Containers) != 1 {
				t.Errorf("status after the take-over: healthy %v (%q), %d containers", s.Healthy, s.Problems, len(s.Containers))
			}
			if !strings.Contains(agent.Log(t), "took over") {
				t.Error("the log does not tell of the take-over")
			}
		})
	}
}

// An agentEnd is a way for an agent to end.
type agentEnd struct {
	name string
	how  func(*harness.Agent, testing.TB)
}

func ends() []agentEnd {
	return []agentEnd{{"stopped", (*harness.Agent).Stop}, {"killed", (*harness.Agent).Kill}}
}

// blocked returns nil if a process in the mount namespace of pid waits for the answer
// to a permission event.
func blocked(pid int) error {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// Processes end while we look.
		if link, err := os.Readlink(dir + "/ns/mnt"); err != nil || link != ns {
			continue
		}
		if at, err := os.ReadFile(dir + "/wchan"); err == nil && strings.Contains(string(at), "fanotify") {
			return nil
		}
	}
	return errors.New("no process waits for an answer")
}

// TestTakeOverAnotherNamespace: a container whose first process has made itself another
// mount namespace is still that container.
func TestTakeOverAnotherNamespace(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"unshare", "-m", "sleep", "1000"}, Gate: agent.Gate(""), Privileged: true})
	wantGuarded(t, agent, c)
	agent.Kill(t)
	agent.Restart(t)
	wantGuarded(t, agent, c)
}
