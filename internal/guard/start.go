package guard

import (
	"errors"
	"net/http"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
)

// A StartPolicy is what holds for a container before it exists.
type StartPolicy struct {
	Tenant string
	Exempt bool // it gets no marks
	Closed bool // it must not start unguarded
}

// StartPolicy says what holds for a container that is about to be made. Only what
// selects a tenant has to be known of it.
func (g *Guard) StartPolicy(a *announce.Container) StartPolicy {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.subject(a)
	if g.config.Exempts(s) {
		return StartPolicy{Exempt: true}
	}
	t := g.config.TenantFor(s)
	// Audit mode never denies.
	return StartPolicy{Tenant: t.Name, Closed: t.Mode != tenant.Audit && t.OnUnguarded == tenant.Deny}
}

// exempts reports whether the platform has decided that a container gets no marks.
func (g *Guard) exempts(a *announce.Container) bool { return g.StartPolicy(a).Exempt }

// guards reports whether the container is guarded already: nothing more need be known of
// one that the hook and the plugin announce, or the plugin whenever it connects.
func (g *Guard) guards(a *announce.Container) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.containers[a.ID]
	return c != nil && c.info.PID == a.PID && c.proc.alive() == nil
}

// unguarded says what becomes of a container that cannot be guarded, and records it. A
// container that has ended needs no gate, and an agent that ends has judged nothing.
func (g *Guard) unguarded(a *announce.Container, why error) (announce.Guarded, error) {
	if r, ok := errors.AsType[*refusal](why); ok && (r.status == http.StatusGone || r.Message == announce.Stopping) {
		return announce.Guarded{}, why
	}
	p := g.StartPolicy(a)
	g.tellUnguarded(a, p, why)
	if p.Closed {
		return announce.Guarded{}, why
	}
	return announce.Guarded{ID: a.ID, Tenant: p.Tenant, Unguarded: why.Error()}, nil
}

// Unguarded counts and records what becomes of a container that could not even be
// announced, and why.
func (g *Guard) Unguarded(a announce.Container, why error) {
	g.tellUnguarded(&a, g.StartPolicy(&a), why)
}

// unknown says, and records, that a container is refused because it cannot be told
// whose it is: no tenant's policy can let it start.
func (g *Guard) unknown(a *announce.Container, why error) error {
	g.tellUnguarded(a, StartPolicy{Closed: true}, why)
	return refuse(http.StatusServiceUnavailable, why, "the container's orchestrator tries again; `assay doctor` looks at the runtime",
		"it cannot be told whose container %s is", a.ID)
}

// tellUnguarded counts, records and logs what becomes of a container that cannot be
// guarded.
func (g *Guard) tellUnguarded(a *announce.Container, p StartPolicy, why error) {
	decision, outcome := fanotify.Allow, "it starts unguarded, as onUnguarded says"
	switch {
	case a.Late:
		outcome = "it goes on running unguarded"
	case p.Closed:
		decision, outcome = fanotify.Deny, "it must not start"
	}
	if t := g.pool(p.Tenant); t != nil {
		t.counters.Add(decision == fanotify.Deny, audit.ReasonUnguarded)
	}
	g.records.Append(audit.Record{
		Time: time.Now(), Tenant: p.Tenant, Container: g.named(a), Op: audit.OpStart, PID: a.PID,
		Decision: decision.String(), Source: sourcePolicy, Reason: audit.ReasonUnguarded, Detail: why.Error(),
	})
	g.log.Error("container cannot be guarded: "+outcome, "container", a.ID, "namespace", a.Namespace, "pod", a.Pod,
		"tenant", p.Tenant, "error", why)
}

// late records a container that was running before it was guarded.
func (c *container) late() {
	since := "some time"
	if age, err := c.proc.age(); err == nil {
		since = age.Round(time.Second).String()
	}
	c.guard.log.Warn("a container ran unguarded until now", "container", c.info.ID, "tenant", c.pool.Load().name,
		"remedy", "restart it if you do not trust what it has opened")
	c.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: c.pool.Load().name, Container: c.named(), Op: audit.OpLate,
		PID: c.info.PID, Exe: exeOf(c.info.PID), Source: sourcePolicy, Reason: audit.ReasonLate,
		Detail: "it had been running for " + since + " before it was guarded: what it opened until then was not scanned, and may still be open or mapped",
	})
}
