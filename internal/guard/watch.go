package guard

import "time"

// late is how long after its deadline an opener may still wait before deadlines are
// thought not to work: timers and workers wait for a busy machine, too.
const late = 5 * time.Second

// A TenantHealth is whether a tenant's events go on.
type TenantHealth struct {
	Tenant string
	// Stuck are workers whose scan did not come back long after its deadline; their
	// places went to others. Exhausted says that there are so many of them that none
	// gets another, and events are answered at once by onTimeout.
	Stuck     int
	Exhausted bool
	// Stalled says that events wait for a worker and no worker has finished anything
	// for longer than the deadline.
	Stalled bool
	// Oldest is for how long the opener that came first waits. Overdue says that this
	// is long after its deadline: deadlines do not work.
	Oldest  time.Duration
	Overdue bool
}

// progress is what was seen of a tenant's workers at the last look.
type progress struct {
	done  uint64    // jobs
	since time.Time // when that changed, or nothing waited
}

// Look looks at all tenants, and gives the places of workers that do not come back to
// others. It is to be called every few seconds, by one goroutine.
func (g *Guard) Look() []TenantHealth {
	pools := g.tenants()
	all := make([]TenantHealth, 0, len(pools))
	for _, t := range pools {
		all = append(all, t.look(time.Now()))
	}
	return all
}

func (t *pool) look(now time.Time) TenantHealth {
	deadline := t.policy.Load().Deadline
	for range t.crew.writeOff(deadline + overtime) {
		t.staff() // what is queued goes on
	}
	h := TenantHealth{
		Tenant: t.name, Stuck: int(t.crew.stuck.Load()), Exhausted: t.crew.exhausted.Load(),
		Stalled: t.stalls(now, deadline),
	}
	var may time.Duration
	_, h.Oldest, may = t.waiting.oldest()
	h.Overdue = h.Oldest > may+late
	return h
}

// stalls reports whether events are queued and none was finished for longer than the
// deadline.
func (t *pool) stalls(now time.Time, deadline time.Duration) bool {
	if done := t.crew.done.Load(); len(t.queue) == 0 || done != t.seen.done || t.seen.since.IsZero() {
		t.seen = progress{done, now}
	}
	return now.Sub(t.seen.since) > deadline
}

// unread is how many events of a tenant's containers nobody has read yet.
func (t *pool) unread(all map[string]*container) int {
	n := t.shared.unread()
	for _, c := range all {
		if c.pool.Load() == t {
			n += c.unread()
		}
	}
	return n
}

// unread is how many events of the container's own groups nobody has read yet.
func (c *container) unread() (n int) {
	if c.sharing == nil {
		n, _ = c.group.Pending() // 0 if it is closed
	}
	if !c.placing.TryLock() {
		return n // a filesystem is being asked, which may take its time
	}
	defer c.placing.Unlock()
	if c.aside != nil {
		aside, _ := c.aside.group.Pending()
		n += aside
	}
	return n
}

func (s *sharedGroup) unread() (n int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.group != nil {
		n, _ = s.group.Pending()
	}
	return n
}
