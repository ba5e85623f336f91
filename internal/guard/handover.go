package guard

import (
	"context"
	"time"
)

// finishPatience is how long scans under way may go on while new openers wait for the
// next agent.
const finishPatience = 500 * time.Millisecond

// HandOver stops without giving the containers up: whoever has their groups besides us
// goes on. The readers have been stopped. Scans under way get a moment to end; whoever
// waits for one that does not is answered as at [Guard.Close]. It returns how many
// containers there are.
func (g *Guard) HandOver(ctx context.Context) int {
	g.stopping.Store(true)
	g.watch.stop()
	if g.ahead != nil {
		g.ahead.Close(ctx)
	}
	finish, cancel := context.WithTimeout(ctx, finishPatience)
	defer cancel()
	g.awaitIdle(finish)
	all := g.guarded()
	for _, c := range all {
		c.handOver()
	}
	for _, t := range g.tenants() {
		t.shared.handOver()
	}
	g.finish(ctx)
	return len(all)
}

// awaitIdle waits until no event is held, or ctx ends.
func (g *Guard) awaitIdle(ctx context.Context) {
	for g.held.n.Load() != 0 && ctx.Err() == nil {
		select {
		case <-g.held.idle:
		case <-ctx.Done():
		}
	}
}

// handOver gives up what dismantle does, but for the groups and their marks.
func (c *container) handOver() {
	c.once.Do(func() {
		c.cancel(errStopping)
		c.placing.Lock()
		defer c.placing.Unlock()
		// Marks on files go before the leases under them.
		if c.group != nil {
			c.group.FlushIgnored()
		}
		c.guard.marks.release(c)
		if c.aside != nil {
			c.aside.handOver()
		}
		if c.group != nil && c.sharing == nil {
			c.group.Disown()
		}
		if l := c.lineage.Load(); l != nil {
			l.release()
		}
		c.proc.close()
	})
}

// handOver stops reading the group and leaves it to the next agent.
func (a *aside) handOver() {
	// One that hangs ends with us.
	a.readers.Remove(a.group, asidePatience)
	a.group.Disown()
}

// asidePatience is how long the end waits for a reader that hangs in a filesystem.
const asidePatience = 100 * time.Millisecond

// handOver leaves the group to the next agent.
func (s *sharedGroup) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	if s.group != nil {
		s.group.Disown()
		s.group = nil
	}
}
