package guard

import "sync/atomic"

// held counts the events whose descriptor is kept, of all tenants.
//
// Their bound is Options.MaxHeld and what the marks' share leaves: marks give way
// before an opener does. A tenant that keeps some may not keep more than is left for
// all others, so that none takes the last descriptor from the rest; where there is
// but one tenant, it may have all.
type held struct {
	n    atomic.Int64
	idle chan struct{} // one place: none is kept any more
}

// hold counts one more event of a tenant, or reports that there are too many.
func (g *Guard) hold(t *pool) bool {
	n, mine := g.held.n.Add(1), t.held.Add(1)
	most := g.opts.MaxHeld
	if most == 0 {
		return true
	}
	if n > g.ample() {
		g.marks.giveWay()
	}
	free := most + g.marks.spare() - n
	if free < 0 || g.several.Load() && mine > 1 && mine > free {
		g.unhold(t)
		return false
	}
	return true
}

// ample is how many events are kept before marks give way: there is some time left
// until their descriptors are needed.
func (g *Guard) ample() int64 { return g.opts.MaxHeld - g.opts.MaxHeld/4 }

// lacking is how many descriptors of the marks' share are needed for events.
func (g *Guard) lacking() int64 {
	if g.opts.MaxHeld == 0 {
		return 0
	}
	return max(0, g.held.n.Load()-g.ample())
}

func (g *Guard) unhold(t *pool) {
	t.held.Add(-1)
	if g.held.n.Add(-1) != 0 {
		return
	}
	select {
	case g.held.idle <- struct{}{}:
	default:
	}
}
