package cri

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
)

// Hooks is what a test does at containerd's NRI events, while containerd waits. An error
// fails what containerd is about; nil hooks do nothing. A hook that takes longer than
// the plugin's time is left behind, as every plugin is.
type Hooks struct {
	Create func(*api.PodSandbox, *api.Container) error
	Start  func(*api.PodSandbox, *api.Container) error
	Stop   func(*api.PodSandbox, *api.Container) error
	Remove func(*api.PodSandbox, *api.Container) error
}

// Plug connects an NRI plugin of the test's own to the node until tb ends, again after
// each restart of containerd. Plugins are called in the order of their index, two
// digits; the agent's has 10. It returns when containerd has registered the plugin.
func (n *Node) Plug(tb testing.TB, index, name string, hooks Hooks) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &plugin{hooks: hooks, registered: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			p.serve(ctx, n.NRISocket, index, name)
		}
	}()
	tb.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-p.registered:
	case <-time.After(patience):
		tb.Fatalf("containerd does not register the plugin %s-%s; the end of its log:\n%s", index, name, n.logTail())
	}
}

// A plugin is the other end of containerd's events.
type plugin struct {
	hooks      Hooks
	registered chan struct{}
}

// serve is one connection to containerd. A moment passes before it returns without one.
func (p *plugin) serve(ctx context.Context, socket, index, name string) {
	s, err := stub.New(p, stub.WithPluginIdx(index), stub.WithPluginName(name), stub.WithSocketPath(socket),
		stub.WithLogger(quiet{}), stub.WithOnClose(func() {}))
	if err == nil && s.Run(ctx) == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// Synchronize ends the registration.
func (p *plugin) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	select {
	case p.registered <- struct{}{}:
	default: // not for the first time
	}
	return nil, nil
}

// CreateContainer is called before the container's specification is final.
func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, at(p.hooks.Create, pod, c)
}

// StartContainer is called when the container's first process waits before its exec.
func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return at(p.hooks.Start, pod, c)
}

// StopContainer is called when the container's processes have ended.
func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, at(p.hooks.Stop, pod, c)
}

// RemoveContainer is called before the container's storage is removed.
func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return at(p.hooks.Remove, pod, c)
}

func at(hook func(*api.PodSandbox, *api.Container) error, pod *api.PodSandbox, c *api.Container) error {
	if hook == nil {
		return nil
	}
	return hook(pod, c)
}

// quiet keeps the stub's messages out of the tests' output.
type quiet struct{}

var _ nrilog.Logger = quiet{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}
