package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/containerd"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/nri"
)

// hookProgram is the hook's name beside the agent's program.
const hookProgram = "assay-hook"

// guarding is the agent as the NRI plugin sees it.
type guarding struct{ *agent }

// Policy implements [nri.Agent].
func (g guarding) Policy(c announce.Container) nri.Policy { return nri.Policy(g.guard.StartPolicy(&c)) }

// Unguarded implements [nri.Agent].
func (g guarding) Unguarded(c announce.Container, why error) { g.guard.Unguarded(c, why) }

// Release implements [nri.Agent].
func (g guarding) Release(id, why string) bool { return g.guard.Release(id, why) }

// openContainerd makes the client of containerd, which connects when it is first asked.
func (a *agent) openContainerd() (err error) {
	a.containerd, err = containerd.New(containerd.Options{
		Socket: a.config.Containerd.Socket, Namespace: a.config.Containerd.Namespace,
	})
	if err != nil {
		return err
	}
	a.memory.Containerd = layer.NewContainerd(a.memory.Host, a.containerd)
	return nil
}

func (a *agent) closeContainerd() {
	if err := a.containerd.Close(); err != nil {
		a.log.Warn("the client of containerd did not close", "error", err)
	}
}

// attach connects to the container runtime, until ctx ends or detach is called.
func (a *agent) attach(ctx context.Context) (detach func()) {
	var end context.CancelFunc
	a.life, end = context.WithCancel(ctx)
	if a.config.NRI.Mode == tenant.NRIOff {
		return end
	}
	a.plugin = a.newPlugin()
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.plugin.Run(a.life)
	}()
	return func() {
		end()
		<-done
	}
}

// newPlugin returns the NRI plugin.
func (a *agent) newPlugin() *nri.Plugin {
	cfg := a.config.NRI
	return nri.New(nri.Options{
		Agent: guarding{a}, Socket: cfg.Socket, Index: cfg.Index, Expected: cfg.Mode == tenant.NRIOn,
		Hook:   []string{hookPath(cfg.Hook), "--socket", a.config.Socket},
		Logger: a.log,
	})
}

// hookPath is the hook program as the runtime sees it.
func hookPath(configured string) string {
	if configured != "" {
		return configured
	}
	own, err := os.Executable()
	if err != nil {
		return "" // containers that must not run unguarded are refused, with this for a reason
	}
	return filepath.Join(filepath.Dir(own), hookProgram)
}

// ServeNRI serves the plugin on a connection that the runtime made.
func (a *agent) ServeNRI(ctx context.Context, conn net.Conn) error {
	if a.plugin == nil {
		return errors.Join(refused(http.StatusConflict, errors.New("the agent has no NRI plugin"), "set nri.mode to auto or on"), conn.Close())
	}
	// The request is the launcher's life: with it the runtime has gone.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	return a.plugin.Serve(a.life, conn) //nolint:contextcheck // what the connection has begun outlasts it
}

// complete adds what the runtime's plugin or containerd know of a container and its
// announcement lacks.
func (a *agent) complete(ctx context.Context, c *announce.Container) error {
	if a.plugin != nil {
		if known, ok := a.plugin.Known(c.ID); ok {
			fill(c, &known)
		}
	}
	if c.Runtime != announce.Containerd || c.PodLabels != nil && c.ImageDigest != "" {
		return nil
	}
	a.mu.Lock()
	needed := c.PodLabels == nil && a.config.AsksPodLabels()
	a.mu.Unlock()
	if !needed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, namesPatience)
		defer cancel()
	}
	d, err := a.containerd.Describe(ctx, c.ID)
	if err != nil && needed {
		return fmt.Errorf("the configuration selects tenants by pod labels, and these are not known: %w", err)
	}
	if err != nil {
		a.log.Warn("containerd does not tell of a container: records will lack what it knows", "container", c.ID, "error", err)
		return nil
	}
	fill(c, &announce.Container{
		Namespace: d.Namespace, PodLabels: d.PodLabels, Name: d.Name, Pod: d.Pod, PodUID: d.PodUID,
		Image: d.Image, ImageDigest: d.ImageDigest,
	})
	return nil
}

// namesPatience is how long a container that starts waits for what only names it in
// records.
const namesPatience = 300 * time.Millisecond

// fill gives c what it lacks of known.
func fill(c, known *announce.Container) {
	for _, f := range []struct{ to, from *string }{
		{&c.Namespace, &known.Namespace},
		{&c.Name, &known.Name},
		{&c.Pod, &known.Pod},
		{&c.PodUID, &known.PodUID},
		{&c.Image, &known.Image},
		{&c.ImageDigest, &known.ImageDigest},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if c.PodLabels == nil {
		c.PodLabels = known.PodLabels
	}
	if c.Runtime == "" {
		c.Runtime = known.Runtime
	}
}

// nriStatus describes the connection to the runtime.
func (a *agent) nriStatus(cfg tenant.NRI) api.NRIStatus {
	st := api.NRIStatus{Mode: string(cfg.Mode), Socket: cfg.Socket}
	if a.plugin == nil {
		return st
	}
	p := a.plugin.Status()
	st.Connected, st.Since, st.Connection = p.Connected, p.Since, string(p.Mode)
	st.Runtime, st.RuntimeVersion, st.NRIVersion = p.Runtime, p.RuntimeVersion, p.NRIVersion
	st.Connections, st.Error = p.Connections, p.LastError
	st.Hooked, st.Refused, st.Open, st.Exempt, st.Panics = p.Hooked, p.Refused, p.Open, p.Exempt, p.Panics
	r := p.Synchronized
	st.Running = api.NRIProgress{
		Containers: r.Containers, Guarded: r.Guarded, UnderWay: r.UnderWay, Gone: r.Gone, Failed: r.Failed, Error: r.LastError,
	}
	return st
}

// nriProblems are what is wrong with the connection to the runtime.
func nriProblems(n *api.NRIStatus) []string {
	var problems []string
	// Without a connection so far there may be no runtime, unless the configuration expects one.
	if !n.Connected && (n.Mode == api.NRIOn || n.Connections > 0) {
		problems = append(problems, "no container runtime is connected (NRI), so that containers start by the hook alone, or unguarded: "+n.Error)
	}
	if n.Running.Failed > 0 {
		problems = append(problems, fmt.Sprintf("%d containers that ran before the agent run unguarded: %s (restart them)", n.Running.Failed, n.Running.Error))
	}
	if n.Panics > 0 {
		problems = append(problems, fmt.Sprintf("the NRI plugin met %d defects of the agent (please report them, with the log)", n.Panics))
	}
	return problems
}
