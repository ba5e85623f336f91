package cri

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestCrashLoop: an agent that dies again and again holds up neither its own pod nor, once
// it lives, anybody else: what was refused meanwhile starts by a retry, what ran goes on,
// and nothing is let through.
func TestCrashLoop(t *testing.T) {
	node, agent := StartInstalled(t, suite, Options{}, suite.Hashes(t))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{Namespace: "pay-eu"})
	runs := pod.Start(t, idle())
	own := node.RunPod(t, PodSpec{Namespace: AgentNamespace, Annotations: map[string]string{Tolerate: "true"}})
	for range 8 {
		agent.Kill(t)
		if r := own.Run(t, Spec{Args: []string{"echo", ran}}); r.Code != 0 || r.Stdout != ran+"\n" {
			t.Errorf("the agent's own pod, without an agent: %s", r)
		}
		agent.Again(t)
		// It lives for as long as this container takes to be made.
		if c, err := pod.Try(t, Spec{Args: reads()}); err == nil {
			wantGated(t, "a container between two crashes", c.Wait(t))
			c.Remove(t)
		} else if c != nil {
			harness.Eventually(t, "what was refused can be removed", func() error { return c.TryRemove(t) })
		}
	}
	wantGated(t, "the retry", retried(t, pod))
	wantGated(t, "what ran all the time", runs.Exec(t, reads()...))
	wantNothingThrough(t, "all of it", observer)
}
