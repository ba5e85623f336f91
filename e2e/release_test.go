package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestRelease: the moment a container is removed, its storage can be unmounted
// and removed, and the agent holds nothing of it. The engines' Remove fails on a
// busy mount.
func TestRelease(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	// The first container makes the agent open what it keeps for good.
	suite.Runc().Run(t, harness.Spec{Args: []string{"guest", "read", harness.BadFile}, Gate: agent.Gate("")})
	agent.AwaitDenied(t, harness.BadFile)
	agent.AwaitIdle(t)
	before := agent.Descriptors(t)
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for range 3 {
				c := e.Start(t, harness.Spec{
					Args: []string{"sleep", "1000"}, Gate: agent.Gate(""),
					Binds: []harness.Bind{{Source: suite.HostDirectory(t, nil), Destination: "/vol"}},
				})
				// Files read often enough for a kernel mark, with whatever it takes.
				for range 3 {
					wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.TopFile, harness.BadFile),
						harness.CleanFile+": 13 bytes", harness.TopFile+": 18 bytes", harness.BadFile+": EPERM")
				}
				c.Kill(t)
				c.Remove(t)
			}
		})
	}
	agent.AwaitIdle(t)
	harness.Eventually(t, "the agent closes what it opened for the containers", func() error {
		if now := agent.Descriptors(t); len(now) > len(before) {
			return fmt.Errorf("%d descriptors, %d before:\n%s", len(now), len(before), strings.Join(now, "\n"))
		}
		return nil
	})
}

// TestManyAtOnce: containers that start together are all gated.
func TestManyAtOnce(t *testing.T) {
	const containers = 20
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			var all sync.WaitGroup
			for range containers {
				all.Go(func() {
					r := e.Run(t, harness.Spec{Args: []string{"guest", "read", harness.CleanFile, harness.BadFile}, Gate: agent.Gate("")})
					want := harness.CleanFile + ": 13 bytes\n" + harness.BadFile + ": EPERM\n"
					if r.Stdout != want {
						t.Errorf("want %q: %s", want, r)
					}
				})
			}
			all.Wait()
		})
	}
	agent.AwaitIdle(t)
}

// TestAgentEndsFirst: without a keeper, an agent that ends lets the containers that it
// guards go on; nobody hangs.
func TestAgentEndsFirst(t *testing.T) {
	for _, end := range ends() {
		t.Run(end.name, func(t *testing.T) {
			agent := suite.StartAgent(t, suite.Hashes(t)+"keeper: {backend: off}\n")
			c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			end.how(agent, t)
			if r := c.Exec(t, "cat", harness.CleanFile); r.Hung || r.Stdout != harness.CleanText {
				t.Errorf("after the agent's end: %s", r)
			}
			c.Kill(t)
			c.Remove(t)
		})
	}
}
