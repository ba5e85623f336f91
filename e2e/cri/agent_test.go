package cri

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestLate: a container that ran before there was an agent is guarded when its plugin
// connects, and the record says that it had been running.
func TestLate(t *testing.T) {
	node := Start(t, suite, Options{})
	before := node.RunPod(t, PodSpec{Namespace: "pay-eu", Name: "early"}).Start(t, idle())
	exempt := node.RunPod(t, PodSpec{Namespace: AgentNamespace}).Start(t, idle())
	wantAllRead(t, "without an agent", before.Exec(t, reads()...))

	agent := suite.StartAgent(t, node.AgentConfig()+tenants(t, ""))
	node.AwaitPlugin(t, 1)
	eventuallyGuards(t, agent, before)
	observer := node.Observe(t)
	if err := observer.Mark(before.PID(t)); err != nil {
		t.Fatal(err)
	}
	wantGuarded(t, "when the plugin has connected", agent, before)
	r := agent.AwaitRecord(t, "the container that was late", func(r harness.Record) bool {
		return r.Op == "late" && r.Container.ID == before.ID()
	})
	if r.Tenant != "payments" || r.Container.Pod != "early" || r.Container.Namespace != "pay-eu" || r.Reason != "late" || r.Decision != "" || r.Container.ImageDigest != node.Images.Manifest {
		t.Errorf("the record of it is %+v", r)
	}
	if r := agent.AwaitRecord(t, "the denied open", denied(before)); r.File.Layer != node.Images.DiffIDs[1] {
		t.Errorf("the record names layer %q, want %s", r.File.Layer, node.Images.DiffIDs[1])
	}
	if Guards(t, agent, exempt.ID()) {
		t.Error("the agent guards a container of an exempt namespace")
	}
	wantAllRead(t, "an exempt container", exempt.Exec(t, reads()...))
	wantNothingThrough(t, "from then on", observer)
}

// TestColdBoot: containerd comes up before the agent, on a node that starts nothing
// unguarded. The agent's own pod starts; others are refused with a reason, and start by a
// retry once there is an agent.
func TestColdBoot(t *testing.T) {
	node := Prepare(t, suite, Options{})
	agent := suite.NewAgent(t, node.AgentConfig()+tenants(t, ""))
	node.Install(t, agent)
	node.Begin(t)
	observer := node.Observe(t)

	own := node.RunPod(t, PodSpec{Namespace: AgentNamespace, Annotations: map[string]string{Tolerate: "true"}})
	if r := own.Run(t, Spec{Args: []string{"echo", ran}}); r.Code != 0 || r.Stdout != ran+"\n" {
		t.Errorf("the agent's own pod: %s", r)
	}
	pod := node.RunPod(t, PodSpec{Namespace: "pay-eu"})
	wantNotStarted(t, "a pod", pod, "required plugin")
	// Whoever makes a pod can say that it needs no plugin. Then it is the hook that refuses.
	bold := node.RunPod(t, PodSpec{Namespace: "pay-eu", Annotations: map[string]string{Tolerate: "true"}})
	wantNotStarted(t, "a pod that tolerates it", bold, "the agent is not running")
	agent.Begin(t)
	node.AwaitPlugin(t, 1)
	for _, pod := range []*Pod{pod, bold} {
		wantGated(t, "the retry", pod.Run(t, Spec{Args: reads()}))
	}
	wantNothingThrough(t, "all of it", observer)
}

// wantNotStarted fails t unless containerd refuses to start a container, and the kubelet is
// told this.
func wantNotStarted(t *testing.T, what string, pod *Pod, says string) {
	t.Helper()
	c, err := pod.Try(t, Spec{Args: reads()})
	if err == nil {
		t.Errorf("%s starts without an agent: %s", what, c.Wait(t))
		return
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("%s: the kubelet is told %q, want it to say %q", what, err, says)
	}
}

// TestAgentAbsent: while the agent is away, what was guarded waits, and what is new does
// not start; when it is back, both go on. It may come back as another binary.
func TestAgentAbsent(t *testing.T) {
	for _, end := range []struct {
		name string
		how  func(*harness.Agent, testing.TB)
	}{{"stopped", (*harness.Agent).Stop}, {"killed", (*harness.Agent).Kill}} {
		t.Run(end.name, func(t *testing.T) {
			node, agent := StartInstalled(t, suite, Options{}, tenants(t, ""))
			observer := node.Observe(t)
			pod := node.RunPod(t, PodSpec{Namespace: "pay-eu"})
			old := pod.Start(t, idle())
			wantGuarded(t, "before", agent, old)

			end.how(agent, t)
			waiting := make(chan harness.Result, 1)
			go func() {
				r, _ := old.TryExec(t, reads()...) // an error shows in the result
				waiting <- r
			}()
			// The first one is created: see TestRequiredPluginIsNotEnough.
			wantNotStarted(t, "a container", pod, "the agent is not running")
			wantNotStarted(t, "the next one", pod, "required plugin")
			agent.Restart(t)
			node.AwaitPlugin(t, 2)
			wantGated(t, "the exec that had to wait", <-waiting)
			wantGuarded(t, "after", agent, old)
			wantGated(t, "a retry", pod.Run(t, Spec{Args: reads()}))
			wantNothingThrough(t, "all of it", observer)
		})
	}
}

// TestContainerdRestarts: containers stay guarded while containerd is away, however it
// has ended, the plugin connects again by itself, and new containers are guarded.
func TestContainerdRestarts(t *testing.T) {
	node, agent := StartInstalled(t, suite, Options{}, tenants(t, ""))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{Namespace: "pay-eu"})
	old := pod.Start(t, idle())
	said := loop(t, pod)
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		wantGuarded(t, "before", agent, old)
		node.End(t, sig)
		if !Guards(t, agent, old.ID()) {
			t.Error("the agent does not list the container while containerd is away")
		}
		awaitConnected(t, agent, false)
		awaitReads(t, said, 3)
		node.Resume(t)
		node.AwaitPlugin(t, 2+i)
		awaitConnected(t, agent, true)
		wantGuarded(t, "after", agent, old)
		awaitReads(t, said, 3)
		wantGated(t, "a new container", pod.Run(t, Spec{Args: reads()}))
		if n := agent.CountRecords(func(r harness.Record) bool { return r.Op == "late" }); n != 0 {
			t.Errorf("%d records of late containers, and none was", n)
		}
	}
	wantNothingThrough(t, "all of it", observer)
}

// awaitConnected waits until the agent says that it is connected to containerd, and well,
// or neither.
func awaitConnected(t *testing.T, agent *harness.Agent, want bool) {
	t.Helper()
	harness.Eventually(t, "the agent's status tells of its connection", func() error {
		s := agent.Status(t)
		if s.NRI.Connected != want || s.Healthy != want || s.NRI.Runtime != "containerd" {
			return fmt.Errorf("healthy %t, problems %q, nri %+v", s.Healthy, s.Problems, s.NRI)
		}
		return nil
	})
}
