package guard

const (
	// shedBatch is how many marks are given up before others get a turn at the lock.
	shedBatch = 64
	// shedAtOnce is the least that is given up when the kernel has no descriptor left.
	shedAtOnce = 256
)

// spare is how many descriptors of the marks' share no mark has.
func (ms *marks) spare() int64 {
	if ms == nil {
		return 0
	}
	return max(0, int64(ms.max)-ms.leased.Load())
}

// allowance is how many leased marks there may be now.
func (ms *marks) allowance() int64 { return max(0, int64(ms.max)-ms.lacking()) }

// giveWay asks for marks to be given up if events need their descriptors. It never
// waits: a reader calls it.
func (ms *marks) giveWay() {
	if ms == nil || ms.leased.Load() <= ms.allowance() {
		return
	}
	select {
	case ms.thin <- struct{}{}:
	default:
	}
}

// starve is giveWay when there was no descriptor left for an event: whatever the
// shares are, some marks have to go.
func (ms *marks) starve() {
	if ms == nil {
		return
	}
	ms.starved.Store(true)
	select {
	case ms.thin <- struct{}{}:
	default:
	}
}

// shed gives up the oldest marks under a lease, as many as events need.
func (ms *marks) shed() {
	least := ms.allowance()
	if ms.starved.Swap(false) {
		now := ms.leased.Load()
		least = max(0, min(least, now-max(shedAtOnce, now/4)))
	}
	for ms.leased.Load() > least && ms.shedSome(least) {
	}
}

// shedSome is one batch of shed. It reports whether there can be more.
func (ms *marks) shedSome(least int64) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	n := 0
	for e := ms.age.Front(); e != nil && n < shedBatch && ms.leased.Load() > least; {
		m := e.Value.(*mark) //nolint:errcheck,forcetypeassert // only marks are put there
		e = e.Next()
		if m.lease == nil {
			continue // has no descriptor
		}
		ms.drop(m, &ms.gaveWay)
		n++
	}
	return n > 0
}
