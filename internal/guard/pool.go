package guard

import (
	"sync/atomic"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

// A pool is one tenant at run time: its policy, its queue, its workers and its
// counters. Tenants share nothing here, so that one's load is never another's.
// A pool without work is a few words of memory and no goroutine.
type pool struct {
	name     string
	policy   atomic.Pointer[policy]
	counters audit.Counters
	scans    atomic.Uint64 // made by scanners, not answered from memory
	epoch    atomic.Uint64 // changes when what the kernel remembers is to be forgotten

	queue   chan job
	crew    crew
	waiting waitingList
	held    atomic.Int64 // events whose descriptor is kept
	seen    progress     // at the last look
	shared  sharedGroup
}

func newPool(g *Guard, name string, p *policy) *pool {
	t := &pool{
		name: name, queue: make(chan job, g.opts.Queue), crew: newCrew(g.opts.Workers),
		shared: sharedGroup{guard: g, tenant: name},
	}
	t.policy.Store(p)
	return t
}

// submit queues a job for a worker, or reports that the queue is full. It never
// waits.
func (t *pool) submit(j job) bool {
	select {
	case t.queue <- j:
	default:
		return false
	}
	t.staff()
	return true
}

// staff starts a worker unless enough are at work.
func (t *pool) staff() {
	if w, hired := t.crew.hire(); hired {
		go t.work(w)
	}
}

// work runs jobs until the queue is empty, or the place was given to another.
func (t *pool) work(w *worker) {
	for {
		select {
		case j := <-t.queue:
			if !t.crew.do(w, j) {
				return
			}
			continue
		default:
		}
		t.crew.dismiss(w)
		// A job queued after the look above but before the count went down found
		// enough workers.
		if len(t.queue) > 0 {
			t.staff()
		}
		return
	}
}

// usePolicy returns the policy in force, held for one scan: the caller calls
// unuse on it. It returns nil for a tenant that a reload has removed.
func (t *pool) usePolicy() *policy {
	for {
		p := t.policy.Load()
		if p.use() {
			return p
		}
		if p == t.policy.Load() {
			return nil
		}
	}
}

// newPolicy binds a tenant's configuration to its scanners. The configuration
// was checked: every name is known. The caller holds g.mu.
func (g *Guard) newPolicy(cfg *tenant.Config, t *tenant.Tenant, scanners map[string]scanner.Named) *policy {
	p := bindPolicy(t, scanners)
	g.classes++
	p.class = g.classes
	if g.memory == nil {
		return p
	}
	hashes := make(map[string]string, len(cfg.Scanners))
	for _, s := range cfg.Scanners {
		hashes[s.Name] = s.Hash()
	}
	p.plan = g.memory.Cache.NewPlan(p.stages, func(name string) string { return hashes[name] })
	return p
}

// bindPolicy is newPolicy without a memory.
func bindPolicy(t *tenant.Tenant, scanners map[string]scanner.Named) *policy {
	p := &policy{Tenant: *t}
	for _, s := range t.Stages {
		stage := scanner.Stage{Decide: scanner.Decide{Quorum: s.Quorum}}
		for _, name := range s.Scanners {
			named := scanners[name]
			_, instant := named.Scanner.(scanner.Instant)
			p.instant = p.instant || instant
			stage.Scanners = append(stage.Scanners, named)
		}
		p.stages = append(p.stages, stage)
	}
	return p
}
