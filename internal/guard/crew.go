package guard

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// overtime is how long after the deadline a scan may go on before its worker's place
	// is given to another: scanners are told to end at the deadline.
	overtime = 5 * time.Second
	// crewFactor bounds the workers of a tenant, those without a place included: this
	// many times those that have one.
	crewFactor = 4
)

// A job is what a worker does. giveUp is called if it does not come back, while it
// still runs; nil if there is nothing to give up.
type job struct {
	run, giveUp func()
}

// A crew is a tenant's workers: those with a place, of which there are so many at
// most, and those whose scan does not come back. A scan cannot be ended from outside,
// so the latter's place goes to a new worker, until there are too many of them.
type crew struct {
	max       int64        // places
	workers   atomic.Int64 // with a place
	stuck     atomic.Int64 // without
	exhausted atomic.Bool  // all places are taken by scans that do not come back
	done      atomic.Uint64
	born      time.Time

	mu  sync.Mutex
	all map[*worker]struct{}
}

// A worker is one goroutine of a crew.
type worker struct {
	// since is when its job began, by the crew's clock; or idle, or writtenOff.
	since  atomic.Int64
	giveUp func() // its job's; guarded by since: whoever writes it off may read it
}

const (
	idle       = 0
	writtenOff = -1
)

func newCrew(places int) crew {
	return crew{max: int64(places), born: time.Now(), all: make(map[*worker]struct{})}
}

// clock is monotonic and never idle or writtenOff.
func (c *crew) clock() int64 { return int64(time.Since(c.born)) + 1 }

// hire takes a place for one more worker, or reports that all are taken.
func (c *crew) hire() (*worker, bool) {
	for {
		n := c.workers.Load()
		if n >= c.max {
			return nil, false
		}
		if c.workers.CompareAndSwap(n, n+1) {
			break
		}
	}
	w := &worker{}
	c.mu.Lock()
	c.all[w] = struct{}{}
	c.mu.Unlock()
	return w, true
}

// dismiss gives the worker's place back.
func (c *crew) dismiss(w *worker) {
	c.forget(w)
	c.workers.Add(-1)
}

func (c *crew) forget(w *worker) {
	c.mu.Lock()
	delete(c.all, w)
	c.mu.Unlock()
}

// do runs a job and reports whether the worker still has its place afterwards.
func (c *crew) do(w *worker, j job) bool {
	w.giveUp = j.giveUp
	w.since.Store(c.clock())
	j.run()
	c.done.Add(1)
	if c.exhausted.Load() {
		c.exhausted.Store(false) // somebody has come back
	}
	if w.since.Swap(idle) != writtenOff {
		return true
	}
	c.forget(w)
	c.stuck.Add(-1)
	return false
}

// writeOff takes the places of workers whose job began more than limit ago, and
// returns how many. If too many have lost theirs already, they keep it, and a crew
// without any other is exhausted.
func (c *crew) writeOff(limit time.Duration) (freed int) {
	gone, hopeless := c.overdue(limit)
	c.exhausted.Store(hopeless >= c.max)
	for _, w := range gone {
		if w.giveUp != nil {
			w.giveUp()
		}
	}
	return len(gone)
}

func (c *crew) overdue(limit time.Duration) (gone []*worker, hopeless int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock()
	for w := range c.all {
		since := w.since.Load()
		if since <= idle || now-since <= int64(limit) {
			continue
		}
		if c.stuck.Load() >= (crewFactor-1)*c.max {
			hopeless++
			continue
		}
		if w.since.CompareAndSwap(since, writtenOff) {
			c.stuck.Add(1)
			c.workers.Add(-1)
			gone = append(gone, w)
		}
	}
	return gone, hopeless
}
