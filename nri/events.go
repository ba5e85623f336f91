package nri

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/assay-project/assay/internal/announce"
)

// What a session handles is what the stub subscribes to.
var (
	_ stub.ConfigureInterface       = (*session)(nil)
	_ stub.SynchronizeInterface     = (*session)(nil)
	_ stub.CreateContainerInterface = (*session)(nil)
	_ stub.StartContainerInterface  = (*session)(nil)
	_ stub.StopContainerInterface   = (*session)(nil)
	_ stub.RemoveContainerInterface = (*session)(nil)
	_ stub.RemovePodInterface       = (*session)(nil)
)

// Configure hears who the runtime is.
func (s *session) Configure(_ context.Context, _, runtime, version string) (api.EventMask, error) {
	if s.gaveUp {
		return 0, errImpatient
	}
	// A runtime that predates these numbers sends none.
	patience := s.stub.RequestTimeout()
	if patience <= 0 {
		patience = api.DefaultPluginRequestTimeout
	}
	s.bound.Store(int64(share(patience)))
	s.plugin.configured(runtime, version, s.stub.RuntimeNRIVersion())
	s.plugin.log.Info("connected to the runtime (NRI)", "runtime", runtime, "version", version,
		"nri", s.stub.RuntimeNRIVersion(), "mode", s.mode, "patience", patience)
	return 0, nil // all that we have handlers for
}

// share is how much of the runtime's patience a handler uses.
func share(patience time.Duration) time.Duration { return patience * 3 / 4 }

// Synchronize hears what is there. What runs is announced in the background: the runtime
// waits for our reply, and counts us in only then.
//
// A container that is created and not started is only remembered: containerd lets no
// plugin in between a container's StartContainer and the moment from which it says that
// it runs, so that this event is still to come.
func (s *session) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	byID := make(map[string]*api.PodSandbox, len(pods))
	for _, pod := range pods {
		byID[pod.GetId()] = pod
	}
	var running []announce.Container
	for _, container := range containers {
		pod := byID[container.GetPodSandboxId()]
		c := s.plugin.announcement(pod, container)
		switch container.GetState() { //nolint:exhaustive // the others do not run
		case api.ContainerState_CONTAINER_CREATED:
			s.plugin.expected.add(c, container.GetPodSandboxId())
		case api.ContainerState_CONTAINER_RUNNING, api.ContainerState_CONTAINER_PAUSED:
			c.PID, c.Rootfs, c.Source, c.Late = int(container.GetPid()), "/", "nri:Synchronize", true
			running = append(running, c)
		}
	}
	s.plugin.log.Info("containers that run are announced (NRI)", "containers", len(running))
	s.plugin.late.begin(s.agent, s.plugin, running) //nolint:contextcheck // outlasts the request
	return nil, nil
}

// CreateContainer remembers what the runtime says of a container, and has the hook put
// into it if it must not run unguarded.
func (s *session) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p := s.plugin
	c := p.announcement(pod, container)
	p.expected.add(c, container.GetPodSandboxId())
	policy := p.opts.Agent.Policy(c)
	if policy.Exempt || !policy.Closed {
		return nil, nil, nil
	}
	if err := complete(&c); err != nil {
		p.opts.Agent.Unguarded(c, err)
		return nil, nil, p.refuse(c, policy, err)
	}
	if p.hooked(container) {
		return nil, nil, nil
	}
	if len(p.opts.Hook) == 0 {
		p.opts.Agent.Unguarded(c, errNoHook)
		return nil, nil, p.refuse(c, policy, errNoHook)
	}
	adjustment := &api.ContainerAdjustment{}
	adjustment.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{p.hook()}})
	p.counters.injected.Add(1)
	return adjustment, nil, nil
}

// errNoHook says that a container which must not run unguarded cannot be made sure of.
var errNoHook = errors.New("there is no hook to put into it (set nri.hook to the path of assay-hook on the host)")

// StartContainer announces a container whose first process exists and waits.
func (s *session) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p := s.plugin
	c := p.started(pod, container)
	policy := p.opts.Agent.Policy(c)
	if policy.Exempt {
		p.counters.exempt.Add(1)
		return nil
	}
	err := complete(&c)
	if err == nil && c.PID == 0 && p.hooked(container) {
		return nil // some runtimes do not tell the process; the hook has judged it
	}
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		err = fmt.Errorf("the runtime's message is not usable: %w", err)
		p.opts.Agent.Unguarded(c, err)
	} else if err = s.announce(c); err == nil { //nolint:contextcheck // outlasts the request
		return nil
	}
	if policy.Closed {
		return p.refuse(c, policy, err)
	}
	p.counters.open.Add(1)
	p.log.Warn("a container starts unguarded (NRI)", "container", c.ID, "tenant", policy.Tenant, "error", err)
	return nil
}

// announce guards a container while the runtime waits. The runtime's own context is not
// the bound, nor is the connection: if the runtime goes away meanwhile, the container
// may live.
func (s *session) announce(c announce.Container) error {
	ctx, cancel := context.WithTimeoutCause(s.agent, time.Duration(s.bound.Load()), errSlow)
	defer cancel()
	_, err := s.plugin.ask(ctx, c)
	return err
}

// errSlow says that the agent did not answer within its share of the runtime's patience.
var errSlow = errors.New("the agent did not guard it within the time that the runtime gives a plugin (plugin_request_timeout)")

// refuse makes the error with which a container is kept from starting.
func (p *Plugin) refuse(c announce.Container, policy Policy, why error) error {
	p.counters.refused.Add(1)
	p.log.Warn("a container is refused (NRI)", "container", c.ID, "tenant", policy.Tenant, "error", why)
	return fmt.Errorf("assay: container %s of tenant %q must not run unguarded: %w", c.ID, policy.Tenant, why)
}

// StopContainer hears that a container has ended, or was not started after all.
func (s *session) StopContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	s.plugin.late.gone(container.GetId())
	return nil, nil
}

// RemoveContainer ends the guard of a container that is no more.
func (s *session) RemoveContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) error {
	id := container.GetId()
	s.plugin.late.gone(id)
	s.plugin.expected.forget(id)
	if id == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(s.agent, time.Duration(s.bound.Load()), errSlow)
	defer cancel()
	_, err := call(ctx, s.plugin, "Release", func() (bool, error) { //nolint:contextcheck // outlasts the request
		return s.plugin.opts.Agent.Release(id, "removed by the runtime"), nil
	})
	if err != nil {
		s.plugin.log.Warn("a removed container was not released (NRI)", "container", id, "error", err)
	}
	return nil // an error would keep nothing from being removed
}

// RemovePodSandbox forgets what was to become of a pod's containers.
func (s *session) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	s.plugin.expected.forgetPod(pod.GetId())
	return nil
}

// ask announces a container to the agent, for as long as ctx lasts.
func (p *Plugin) ask(ctx context.Context, c announce.Container) (announce.Guarded, error) {
	return call(ctx, p, "Announce", func() (announce.Guarded, error) {
		return p.opts.Agent.Announce(ctx, c)
	})
}

// call calls the agent and waits as long as ctx lasts; what comes later is not heard. A
// panic of the agent's is an error.
func call[T any](ctx context.Context, p *Plugin, what string, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() { done <- r }()
		defer p.recovered(what, &r.err)
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
