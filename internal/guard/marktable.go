package guard

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/layer"
)

// enter registers a mark that is in place, unless it is to be forgotten already.
func (m *mark) enter() bool {
	ms := m.marks
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m.over {
		return true // placed, and broken since: nothing is left of it
	}
	if m.c.ctx.Err() != nil || m.pool.epoch.Load() != m.epoch || ms.all[m.c][m.id] != nil {
		return false
	}
	if ms.all[m.c] == nil {
		ms.all[m.c] = make(map[layer.Identity]*mark)
	}
	ms.all[m.c][m.id] = m
	m.place = ms.age.PushBack(m)
	ms.of[m.pool]++
	if m.lease != nil {
		ms.leased.Add(1)
	}
	ms.placed.Add(1)
	return true
}

// leave unregisters a mark. The caller holds marks.mu.
func (m *mark) leave() {
	m.over = true
	if m.place == nil {
		return
	}
	ms := m.marks
	ms.age.Remove(m.place)
	m.place = nil
	if m.lease != nil {
		ms.leased.Add(-1)
	}
	delete(ms.all[m.c], m.id)
	if len(ms.all[m.c]) == 0 {
		delete(ms.all, m.c)
	}
	if ms.of[m.pool]--; ms.of[m.pool] == 0 {
		delete(ms.of, m.pool)
	}
}

// room makes room for one more mark of a tenant. When all are taken, the tenant with
// the most has to give way to those below their share.
func (ms *marks) room(w wish) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.all[w.c][w.id] != nil {
		return false // it stands already: two wishes were on their way
	}
	if ms.lacking() > 0 && ms.leased.Load() >= ms.allowance() {
		return false // events need the descriptor
	}
	if ms.age.Len() < ms.max {
		return true
	}
	victim := w.pool
	if ms.of[w.pool] < ms.max/(len(ms.of)+1) {
		for t, n := range ms.of {
			if n > ms.of[victim] {
				victim = t
			}
		}
	}
	for e := ms.age.Front(); e != nil; e = e.Next() {
		m := e.Value.(*mark) //nolint:errcheck,forcetypeassert // only marks are put there
		if m.pool != victim {
			continue
		}
		if victim == w.pool && time.Since(m.since) < settling {
			return false
		}
		ms.drop(m, &ms.evicted)
		return true
	}
	return false
}

// count returns how many marks a tenant has.
func (ms *marks) count(t *pool) int {
	if ms == nil {
		return 0
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.of[t]
}

// find returns a container's mark on a file, if there is one.
func (ms *marks) find(c *container, id layer.Identity) (since time.Time, leased, found bool) {
	if ms == nil {
		return time.Time{}, false, false
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[c][id]
	if m == nil {
		return time.Time{}, false, false
	}
	return m.since, m.lease != nil, true
}

// A MarkStats is what became of the kernel's marks on clean files.
type MarkStats struct {
	Now, Max                         int
	Leased                           int // of those now, which have a descriptor each
	Placed, Broken, Evicted, Flushed uint64
	Shed                             uint64            // given up because events needed their descriptors
	Skipped                          map[string]uint64 // clean files that got no mark, by reason
}

func (ms *marks) stats() MarkStats {
	if ms == nil {
		return MarkStats{}
	}
	ms.mu.Lock()
	now := ms.age.Len()
	ms.mu.Unlock()
	st := MarkStats{
		Now: now, Max: ms.max, Leased: int(ms.leased.Load()), Shed: ms.gaveWay.Load(), Placed: ms.placed.Load(), Broken: ms.broken.Load(),
		Evicted: ms.evicted.Load(), Flushed: ms.flushed.Load(), Skipped: map[string]uint64{},
	}
	for s := range numSkips {
		if n := ms.skipped[s].Load(); n > 0 {
			st.Skipped[s.String()] = n
		}
	}
	return st
}

// drop ends a mark, and those that go with it. The caller holds mu.
func (ms *marks) drop(m *mark, counter *atomic.Uint64) {
	together := []*mark{m}
	if m.lease == nil {
		together = slices.Collect(maps.Values(ms.all[m.c]))
	}
	for _, one := range together {
		one.leave()
		counter.Add(1)
		if one.lease != nil {
			one.end()
		}
	}
	if m.lease == nil {
		m.end()
	}
}

// flush takes away all marks of a tenant: what they stand for has changed.
func (ms *marks) flush(t *pool) {
	t.epoch.Add(1) // marks that are being placed see that
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, of := range ms.all {
		for _, m := range of {
			if m.pool == t {
				ms.drop(m, &ms.flushed)
			}
		}
	}
}

// release drops all marks of a container that has ended. Its groups are closed, or
// shared with others.
func (ms *marks) release(c *container) {
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.all[c] {
		ms.drop(m, &ms.flushed)
	}
}

// sweep gives up files that were removed: the descriptor keeps their content on disk.
func (ms *marks) sweep() {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, of := range ms.all {
		for _, m := range of {
			if m.pristine || m.lease == nil {
				continue
			}
			gone := false
			m.lease.With(func(fd int) {
				var st unix.Stat_t
				gone = unix.Fstat(fd, &st) == nil && st.Nlink == 0
			})
			if gone {
				ms.drop(m, &ms.evicted)
			}
		}
	}
}
