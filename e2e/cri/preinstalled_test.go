package cri

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestPreInstalled: containerd starts the agent's plugin itself, before it serves anybody,
// through the launcher that hands its connection to the agent; each containerd anew. When
// the agent has ended with its connection, the next one connects by itself.
func TestPreInstalled(t *testing.T) {
	node := Prepare(t, suite, Options{})
	agent := suite.NewAgent(t, node.AgentConfig()+suite.Hashes(t))
	node.Install(t, agent, "--pre-installed")
	agent.Begin(t)
	node.Begin(t)
	observer := node.Observe(t)
	awaitConnection(t, agent, "pre-installed")
	pod := node.RunPod(t, PodSpec{})
	wantGated(t, "a container", pod.Run(t, Spec{Args: reads()}))

	node.Restart(t, syscall.SIGTERM)
	awaitConnection(t, agent, "pre-installed")
	wantGated(t, "after a restart of containerd", pod.Run(t, Spec{Args: reads()}))

	agent.Kill(t)
	agent.Again(t)
	awaitConnection(t, agent, "external")
	wantGated(t, "by the next agent", retried(t, pod))
	wantNothingThrough(t, "all of it", observer)
}

// awaitConnection waits until the agent is connected to containerd, by this way.
func awaitConnection(t *testing.T, agent *harness.Agent, way string) {
	t.Helper()
	harness.Eventually(t, "the agent is connected to containerd", func() error {
		if n := agent.Status(t).NRI; !n.Connected || n.Connection != way || n.Runtime != "containerd" {
			return fmt.Errorf("its status says %+v, want %s", n, way)
		}
		return nil
	})
}
