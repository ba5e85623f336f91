package guard

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// Defaults of Options.
const (
	defaultQueue   = 4096
	defaultWorkers = 16
)

// Options are what a Guard needs. Readers and Records are required.
type Options struct {
	Readers *fanotify.Readers // serve the containers' groups; stays the caller's
	Records *audit.Log        // takes the records; stays the caller's
	Logger  *slog.Logger      // nil discards
	// Queue is how many events of one tenant may wait for a worker, and Workers
	// how many are scanned at once; 0 means 4096 and 16.
	Queue, Workers int
	// MaxHeld bounds the events of all tenants that wait or are scanned. Each is
	// an open descriptor: choose it below RLIMIT_NOFILE. 0 means no bound.
	MaxHeld int64
	// Memory remembers verdicts; nil scans every open.
	Memory *Memory
	// Keeper keeps containers guarded while this process is away; nil is none.
	Keeper Keeper
	// Complete adds what the runtime knows of an announced container and its announcement
	// lacks. An error says that something is unknown which decides whose container it is:
	// it does not start. nil adds nothing.
	Complete func(context.Context, *announce.Container) error
}

// A Guard guards containers.
type Guard struct {
	opts     Options
	readers  *fanotify.Readers
	records  *audit.Log
	log      *slog.Logger
	memory   *Memory
	keeper   Keeper // nil without
	marks    *marks // nil without a memory
	watch    *generations
	ahead    *ahead.Runner // nil without a memory
	newGroup func() (*fanotify.Group, error)

	held    held
	several atomic.Bool // there is more than one tenant
	// recordLabels are the keys of those labels that records name.
	recordLabels atomic.Pointer[[]string]
	follow       sync.WaitGroup // goroutines that wait for containers to exit
	stopping     atomic.Bool

	mu         sync.Mutex
	config     *tenant.Config
	pools      map[string]*pool // every tenant there ever was
	containers map[string]*container
	joining    map[string]chan struct{} // ids being announced; closed when that is over
	classes    verdict.Class            // policies so far
}

// New returns a Guard under cfg with its scanners, by name.
func New(o Options, cfg *tenant.Config, scanners map[string]scanner.Named) *Guard {
	if o.Queue == 0 {
		o.Queue = defaultQueue
	}
	if o.Workers == 0 {
		o.Workers = defaultWorkers
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Guard{
		opts: o, readers: o.Readers, records: o.Records, log: o.Logger, memory: o.Memory, keeper: o.Keeper, newGroup: fanotify.NewGroup,
		pools: map[string]*pool{}, containers: map[string]*container{}, joining: map[string]chan struct{}{}, held: held{idle: make(chan struct{}, 1)},
	}
	if g.memory != nil {
		g.marks = newMarks(g.memory, g.lacking)
	}
	g.Apply(cfg, scanners)
	if g.memory != nil {
		g.ahead = ahead.Start(aheadScans{g})
		g.watch = watchGenerations(g)
	}
	return g
}

// Apply puts another configuration in force, for containers already guarded too:
// their tenant is chosen anew, and each event from now on meets the new policy.
// It returns a function that waits until no scan uses the replaced scanners any
// more; then they may be closed.
func (g *Guard) Apply(cfg *tenant.Config, scanners map[string]scanner.Named) (drained func()) {
	before := g.tenants()
	old := g.install(cfg, scanners)
	// What the kernel lets through was allowed under the old policies.
	for _, t := range append(before, g.tenants()...) {
		g.marks.flush(t)
	}
	// Marking walks the containers' mounts, which nobody else should wait for.
	for _, c := range g.guarded() {
		g.renew(c)
	}
	g.Keep() // for how long, and with which fallback
	return func() {
		for _, p := range old {
			p.retire()
		}
	}
}

// install replaces the policies and returns those that are no longer in force.
func (g *Guard) install(cfg *tenant.Config, scanners map[string]scanner.Named) (old []*policy) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range cfg.Tenants {
		t := &cfg.Tenants[i]
		p := g.newPolicy(cfg, t, scanners)
		if known := g.pools[t.Name]; known != nil {
			old = append(old, known.policy.Swap(p))
			continue
		}
		g.pools[t.Name] = newPool(g, t.Name, p)
		if err := g.pools[t.Name].shared.reserve(); err != nil {
			g.log.Warn("no spare fanotify group for the tenant: if the limit is reached, its containers are refused",
				"tenant", t.Name, "error", err, "remedy", "raise fs.fanotify.max_user_groups")
		}
	}
	g.config = cfg
	g.several.Store(len(cfg.Tenants) > 1)
	g.recordLabels.Store(&cfg.RecordLabels)
	for _, c := range g.containers {
		g.assign(c)
	}
	// Tenants that are gone have no container left: their policies are done with
	// as soon as their last scan ends.
	for name, t := range g.pools {
		if !slices.ContainsFunc(cfg.Tenants, func(t tenant.Tenant) bool { return t.Name == name }) {
			old = append(old, t.policy.Load())
			t.shared.close()
			delete(g.pools, name)
		}
	}
	return old
}

// assign gives a container to the tenant of the configuration in force. The
// caller holds g.mu.
func (g *Guard) assign(c *container) {
	c.pool.Store(g.pools[g.config.TenantFor(g.subject(&c.info)).Name])
}

// subject is what of an announcement may decide whose container it is. The caller
// holds g.mu.
func (g *Guard) subject(a *announce.Container) tenant.Subject {
	return g.config.Subject(a.Namespace, a.PodLabels)
}

// renew asks the kernel for events of a guarded container that its policy wants
// and its marks do not ask for yet.
func (g *Guard) renew(c *container) {
	t := c.pool.Load()
	p := t.policy.Load()
	if c.suits(p) {
		return
	}
	if err := c.renew(p); err != nil && c.ctx.Err() == nil {
		g.log.Error("marks of a container could not be renewed; it keeps those it has",
			"container", c.info.ID, "tenant", t.name, "error", err)
	}
}

// Close answers everything that waits and releases all containers: from then on
// nothing guards them. It returns how many that were. ctx bounds the wait for
// scanners that do not end; their openers are answered all the same.
func (g *Guard) Close(ctx context.Context) int {
	g.stopping.Store(true)
	g.watch.stop()
	if g.ahead != nil {
		g.ahead.Close(ctx)
	}
	all := g.guarded()
	for _, c := range all {
		g.release(c, "the agent stops")
	}
	for _, t := range g.tenants() {
		t.shared.close()
	}
	g.finish(ctx)
	return len(all)
}

// finish waits for what the containers have left.
func (g *Guard) finish(ctx context.Context) {
	idle := make(chan struct{})
	go func() {
		g.awaitIdle(ctx)
		g.follow.Wait()
		close(idle)
	}()
	defer g.marks.close()
	select {
	case <-idle:
	case <-ctx.Done():
		g.log.Warn("scans did not end in time", "held", g.held.n.Load())
	}
}

func (g *Guard) guarded() []*container {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.containers))
}

func (g *Guard) tenants() []*pool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.pools))
}

// release ends a container's guard: its marks go, its scans are cancelled and
// answered, its descriptors closed. Releasing twice is harmless.
func (g *Guard) release(c *container, why string) {
	c.dismantle()
	g.mu.Lock()
	mine := g.containers[c.info.ID] == c
	if mine {
		delete(g.containers, c.info.ID)
	}
	g.mu.Unlock()
	if !mine {
		return
	}
	g.log.Info("container released", "container", c.info.ID, "tenant", c.pool.Load().name, "why", why)
}

// Release ends the guard of a running container, which goes on unguarded: its marks go,
// whoever waits is answered by onError, and the keeper gives it up. It reports whether
// there is such a container.
func (g *Guard) Release(id, why string) bool {
	g.mu.Lock()
	c := g.containers[id]
	g.mu.Unlock()
	if c == nil {
		return false
	}
	g.release(c, why)
	return true
}

// exited follows a container until its first process exits.
func (g *Guard) exited(c *container) {
	if err := c.proc.wait(); err != nil {
		return // released by somebody else, who closed the pidfd
	}
	g.release(c, "its first process exited")
}

// A TenantState is what a tenant is doing.
type TenantState struct {
	Name             string
	Mode             tenant.Mode
	Containers       int
	Queued, InFlight int
	Held             int           // events whose descriptor is kept
	Pending          int           // openers that wait, those whose event nobody has read yet included
	Oldest           time.Duration // for how long the first of those whose event was read waits
	Stuck            int           // workers that do not come back
	Reserve          bool          // there is a group to share when the kernel allows no more
	Answers          audit.Counts
	Scans            uint64 // made by scanners
	Marks            int    // files that the kernel lets through now
}

// A ContainerState is one guarded container.
type ContainerState struct {
	ID, Name, Namespace, Pod, Tenant string
	PID                              int
	Since                            time.Time
	Mounts                           []Mount
	Answers                          audit.Counts
	Keys                             []string // of the keeper's entries that a successor needs
}

// Tenants describes the tenants in the order of the configuration.
func (g *Guard) Tenants() []TenantState {
	g.mu.Lock()
	defer g.mu.Unlock()
	states := make([]TenantState, 0, len(g.config.Tenants))
	for i := range g.config.Tenants {
		t := g.pools[g.config.Tenants[i].Name]
		s := TenantState{
			Name: t.name, Mode: t.policy.Load().Mode, Queued: len(t.queue),
			InFlight: int(t.crew.workers.Load()), Answers: t.counters.Snapshot(),
			Scans: t.scans.Load(), Marks: g.marks.count(t),
			Held: int(t.held.Load()), Stuck: int(t.crew.stuck.Load()), Reserve: t.shared.reserved(),
		}
		s.Pending, s.Oldest, _ = t.waiting.oldest()
		s.Pending += t.unread(g.containers)
		for _, c := range g.containers {
			if c.pool.Load() == t {
				s.Containers++
			}
		}
		states = append(states, s)
	}
	return states
}

// Containers describes the guarded containers, oldest first.
func (g *Guard) Containers() []ContainerState {
	g.mu.Lock()
	defer g.mu.Unlock()
	states := make([]ContainerState, 0, len(g.containers))
	for _, c := range g.containers {
		states = append(states, ContainerState{
			ID: c.info.ID, Name: c.info.Name, Namespace: c.info.Namespace, Pod: c.info.Pod,
			Tenant: c.pool.Load().name, PID: c.info.PID, Since: c.since,
			Mounts: c.marked(), Answers: c.counters.Snapshot(), Keys: c.keys(),
		})
	}
	slices.SortFunc(states, func(a, b ContainerState) int { return a.Since.Compare(b.Since) })
	return states
}

// pool returns a tenant's pool by name, nil if there is none; "" means the tenant of
// the empty namespace.
func (g *Guard) pool(name string) *pool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if name == "" {
		name = g.config.TenantFor(tenant.Subject{}).Name
	}
	return g.pools[name]
}
