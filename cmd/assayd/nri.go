package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
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
		Hook: hookCommand(cfg.Hook, a.config.Socket), Logger: a.log,
	})
}

// hookCommand is the hook as the runtime starts it: the configured program, or the one
// beside our own. It is nil where that is not known: then containers that must not run
// unguarded are refused, with this for a reason.
func hookCommand(program, socket string) []string {
	if program == "" {
		own, err := os.Executable()
		if err != nil {
			return nil
		}
		program = filepath.Join(filepath.Dir(own), hookProgram)
	}
	return []string{program, "--socket", socket}
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
