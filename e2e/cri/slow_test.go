package cri

import (
	"strings"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestContainerdMute: containerd's own API does not answer the agent, while NRI and CRI do:
// containers start, or do not, within a bound, and are guarded if they do. When it
// answers again, the agent is as before.
func TestContainerdMute(t *testing.T) {
	node := Prepare(t, suite, Options{})
	proxy := Between(t, suite, node.Socket)
	// Not NRI's socket, whose name is another.
	config := strings.ReplaceAll(node.AgentConfig(), "socket: "+node.Socket, "socket: "+proxy.Socket)
	agent := suite.NewAgent(t, config+suite.Hashes(t))
	node.Install(t, agent)
	node.BeginGated(t, agent)
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{})
	old := pod.Start(t, idle())
	for _, mute := range []struct {
		name       string
		begin, end func()
	}{
		{"silent", proxy.Hold, proxy.Release},
		{"hangs up", func() { proxy.Cut() }, func() {}},
	} {
		t.Run(mute.name, func(t *testing.T) {
			mute.begin()
			c, err := pod.Try(t, Spec{Args: reads()})
			if err == nil {
				wantGated(t, "while containerd is mute", c.Wait(t))
			} else {
				t.Logf("while containerd is mute: %v", err)
			}
			wantGuarded(t, "a container that runs", agent, old)
			mute.end()
			wantGated(t, "the next container", retried(t, pod))
			r := agent.AwaitRecord(t, "a denied open of it", func(r harness.Record) bool {
				return r.Container.ID != old.ID() && r.Decision == "deny" && r.Path == harness.BadFile
			})
			if r.Tenant != "default" {
				t.Errorf("its record is %+v", r)
			}
		})
	}
	wantNothingThrough(t, "all of it", observer)
}

// TestContainerdStopped: containerd itself is stopped for a while: what runs stays
// guarded, and the agent can be asked, stopped and started meanwhile.
func TestContainerdStopped(t *testing.T) {
	node, agent := StartInstalled(t, suite, Options{}, suite.Hashes(t))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{})
	old := pod.Start(t, idle())
	said := loop(t, pod)
	node.Signal(t, syscall.SIGSTOP)
	awaitReads(t, said, 3)
	if !Guards(t, agent, old.ID()) {
		t.Error("the agent does not list the container while containerd is stopped")
	}
	agent.Stop(t)
	agent.Restart(t)
	awaitReads(t, said, 3)
	node.Signal(t, syscall.SIGCONT)
	node.AwaitPlugin(t, 2)
	wantGuarded(t, "afterwards", agent, old)
	wantGated(t, "the next container", retried(t, pod))
	wantNothingThrough(t, "all of it", observer)
}
