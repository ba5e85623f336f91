package nri

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/assay-project/assay/internal/announce"
)

// node is a node with n running containers.
func node(n int) (pods []*api.PodSandbox, containers []*api.Container) {
	for i := range n {
		pod := &api.PodSandbox{
			Id: fmt.Sprintf("pod-%d", i), Name: "shop", Namespace: "pay-eu",
			Labels: map[string]string{"tier": "pci", "padding": fmt.Sprintf("%0128d", i)},
		}
		pods = append(pods, pod)
		containers = append(containers, &api.Container{
			Id: fmt.Sprintf("c-%d", i), PodSandboxId: pod.GetId(), Name: "cart", Pid: uint32(1000 + i), State: api.ContainerState_CONTAINER_RUNNING,
			Env: []string{fmt.Sprintf("%08192d", i)}, // so that the list takes several messages
		})
	}
	return pods, containers
}

// TestSynchronizeIsAnsweredAtOnce: however slow the agent is, and however many
// containers there are.
func TestSynchronizeIsAnsweredAtOnce(t *testing.T) {
	proceed := make(chan struct{})
	agent := &testAgent{announce: func(ctx context.Context, c announce.Container) (announce.Guarded, error) {
		select {
		case <-proceed:
		case <-ctx.Done():
		}
		return announce.Guarded{ID: c.ID}, ctx.Err()
	}}
	dir := t.TempDir()
	r := startRuntime(t, dir)
	r.holds(node(1000))
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	r.isConnected(t, p)
	if s := p.Status().Synchronized; s.Containers != 1000 || s.UnderWay != 1000 {
		t.Errorf("progress %+v", s)
	}
	close(proceed)
	await(t, "the round's end", func() bool { return p.Status().Synchronized.Guarded == 1000 })
	seen := map[string]bool{}
	for _, c := range agent.toldOf() {
		seen[c.ID] = true
		if !c.Late || c.Source != "nri:Synchronize" || c.Namespace != "pay-eu" || c.PodLabels["tier"] != "pci" || c.PID < 1000 || c.Rootfs != "/" {
			t.Fatalf("announced %+v", c)
		}
	}
	if len(seen) != 1000 || p.Status().Synchronized.UnderWay != 0 {
		t.Errorf("%d containers, progress %+v", len(seen), p.Status().Synchronized)
	}
}

// TestSynchronizeStates: what runs is announced, what may start is known, the rest is
// neither. A container without its pod is announced for what it is.
func TestSynchronizeStates(t *testing.T) {
	agent := &testAgent{}
	dir := t.TempDir()
	r := startRuntime(t, dir)
	var containers []*api.Container
	for i, state := range []api.ContainerState{
		api.ContainerState_CONTAINER_UNKNOWN, api.ContainerState_CONTAINER_CREATED, api.ContainerState_CONTAINER_PAUSED,
		api.ContainerState_CONTAINER_RUNNING, api.ContainerState_CONTAINER_STOPPED, api.ContainerState_CONTAINER_RUNNING,
	} {
		c := cloneContainer(aContainer)
		c.Id, c.State = fmt.Sprintf("c-%d", i), state
		containers = append(containers, c)
	}
	containers[5].PodSandboxId = "nobody's"
	containers = append(containers, containers[3], nil)
	r.holds([]*api.PodSandbox{aPod, aPod}, containers)
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	await(t, "the round's end", func() bool { return p.Status().Synchronized.Guarded == 3 })
	got := map[string]announce.Container{}
	for _, c := range agent.toldOf() {
		got[c.ID] = c
	}
	if len(got) != 3 || got["c-2"].Namespace != "pay-eu" || got["c-3"].Namespace != "pay-eu" {
		t.Errorf("announced %+v", got)
	}
	if c := got["c-5"]; c.Namespace != "" || c.PodLabels != nil {
		t.Errorf("one without its pod: %+v", c)
	}
	if c, ok := p.Known("c-1"); !ok || c.Namespace != "pay-eu" || p.Status().Known != 1 {
		t.Errorf("known %+v, %v, %d in all", c, ok, p.Status().Known)
	}
}

// TestLateIsTriedAgain: what fails is tried again, then counted as failed.
func TestLateIsTriedAgain(t *testing.T) {
	tries := map[string]int{} // of each container, by one worker at a time
	agent := &testAgent{}
	agent.announce = func(_ context.Context, c announce.Container) (announce.Guarded, error) {
		agent.mu.Lock()
		defer agent.mu.Unlock()
		tries[c.ID]++
		switch {
		case c.ID == "c-0", c.ID == "c-1" && tries[c.ID] < 3:
			return announce.Guarded{}, errors.New("not now")
		case c.ID == "c-2" && tries[c.ID] == 1:
			panic("at first")
		}
		return announce.Guarded{ID: c.ID}, nil
	}
	dir := t.TempDir()
	r := startRuntime(t, dir)
	r.holds(node(4))
	p, book := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	await(t, "the round's end", func() bool { return p.Status().Synchronized.Failed > 0 })
	s := p.Status()
	if got := s.Synchronized; got.Guarded != 3 || got.Failed != 1 || got.LastError != "container c-0: not now" {
		t.Errorf("progress %+v", got)
	}
	agent.mu.Lock()
	defer agent.mu.Unlock()
	if tries["c-0"] != lateTries || tries["c-1"] != 3 || tries["c-2"] != 2 || tries["c-3"] != 1 || s.Panics != 1 {
		t.Errorf("tries %v, status %+v", tries, s)
	}
	if book.count("containers run unguarded") != 1 {
		t.Error("nobody is told")
	}
}

// TestLateEnds: a container that ends meanwhile is no failure.
func TestLateEnds(t *testing.T) {
	agent := &testAgent{announce: func(context.Context, announce.Container) (announce.Guarded, error) {
		return announce.Guarded{}, errors.New("no such process")
	}}
	dir := t.TempDir()
	r := startRuntime(t, dir)
	_, containers := node(2)
	r.holds(node(2))
	p, _ := newPlugin(t, agent, socketIn(dir))
	p.late.tries = 1 << 30
	p.late.pause = time.Nanosecond
	run(t, p)
	r.isConnected(t, p)
	if _, err := r.StopContainer(t.Context(), &api.StopContainerRequest{Container: containers[0]}); err != nil {
		t.Error(err)
	}
	if err := r.RemoveContainer(t.Context(), &api.RemoveContainerRequest{Container: containers[1]}); err != nil {
		t.Error(err)
	}
	await(t, "the round's end", func() bool { return p.Status().Synchronized.Gone == 2 })
	if s := p.Status().Synchronized; s.UnderWay != 0 || s.Failed != 0 {
		t.Errorf("progress %+v", s)
	}
}

// TestNewRoundEndsTheOld: a container is never announced by two rounds at a time.
func TestNewRoundEndsTheOld(t *testing.T) {
	begun := make(chan struct{}, 2)
	ended := make(chan error, 2)
	agent := &testAgent{announce: func(ctx context.Context, _ announce.Container) (announce.Guarded, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return announce.Guarded{}, ctx.Err()
	}}
	p, _ := newPlugin(t, agent, "")
	ctx, cancel := context.WithCancel(t.Context())
	c := wantAnnouncement()
	c.PID, c.Rootfs = 4711, "/"
	p.late.begin(ctx, p, []announce.Container{c})
	<-begun
	p.late.begin(ctx, p, []announce.Container{c})
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the first ended with %v", err)
	}
	<-begun
	cancel()
	p.late.stop()
	<-ended //nolint:errcheck // it ends with its context
	if s := p.Status().Synchronized; s.Failed != 0 || s.UnderWay != 1 {
		t.Errorf("progress %+v", s)
	}
}

func TestExpectedIsBounded(t *testing.T) {
	e := newExpected(3)
	for _, id := range []string{"a", "b", "c", "a", "d"} { // a is the newest but one
		e.add(announce.Container{ID: id, Name: id}, "pod-"+id)
	}
	for id, want := range map[string]bool{"a": true, "b": false, "c": true, "d": true, "": false} {
		if _, ok := e.get(id); ok != want {
			t.Errorf("%q: %v, want %v", id, ok, want)
		}
	}
	e.add(announce.Container{}, "pod")
	e.forget("nobody")
	e.forgetPod("pod-c")
	if e.len() != 2 || e.oldest.Len() != 2 {
		t.Errorf("%d and %d left", e.len(), e.oldest.Len())
	}
}
