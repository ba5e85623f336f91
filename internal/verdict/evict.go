package verdict

import "slices"

const (
	// A container may fill this part of the bound.
	containerShare = 8
	// coldEpochs is how long a scope must be unused to be evicted as a whole: an
	// eighth of the time in which the whole cache could have been filled anew.
	coldEpochs = epochs / 8
)

// bound makes room if there is too much, in the scope or in all. After it, the
// bound is exceeded at most by what other goroutines are putting in right now.
func (c *Cache) bound(s *scope) {
	share := c.maxBytes / containerShare
	crowding := func() bool { return s.id.Kind == Container && s.bytes.Load() > share }
	full := func() bool { return c.bytes.Load() > c.maxBytes }
	if !crowding() && !full() {
		return
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	if crowding() {
		c.evictFiles([]*scope{s}, s.bytes.Load()-share/8*7, FlushShare)
	}
	if full() {
		c.evict(c.bytes.Load() - c.maxBytes/16*15)
	}
}

// evict frees bytes: first whole scopes that have not been used for long, then,
// over all scopes, the files that have not been used for longest.
func (c *Cache) evict(bytes int64) {
	for _, s := range c.coldest() {
		if bytes <= 0 {
			return
		}
		if c.age(s.used.Load()) < coldEpochs {
			break
		}
		bytes -= c.evictScope(s)
	}
	if bytes > 0 {
		c.evictFiles(c.scopes.list(), bytes, FlushColdFile)
	}
}

// coldest returns all scopes, the longest unused ones first; of those of one
// age the ones without users, then the largest.
func (c *Cache) coldest() []*scope {
	type seen struct {
		s     *scope
		age   uint32
		idle  bool
		bytes int64
	}
	var all []seen
	for _, s := range c.scopes.list() {
		all = append(all, seen{s, c.age(s.used.Load()), s.users.Load() == 0, s.bytes.Load()})
	}
	slices.SortFunc(all, func(a, b seen) int {
		switch {
		case a.age != b.age:
			return int(b.age) - int(a.age)
		case a.idle != b.idle && a.idle:
			return -1
		case a.idle != b.idle:
			return 1
		}
		return int(min(1, max(-1, b.bytes-a.bytes)))
	})
	sorted := make([]*scope, len(all))
	for i := range all {
		sorted[i] = all[i].s
	}
	return sorted
}

// evictScope empties a scope, and forgets it if it has no users.
func (c *Cache) evictScope(s *scope) (freed int64) {
	c.scopes.mu.Lock()
	gone := s.users.Load() == 0 && !s.dead.Load()
	if gone {
		c.detach(s)
	}
	c.scopes.mu.Unlock()
	if gone {
		freed = s.bytes.Load()
		c.bury(s, FlushColdScope)
		return freed
	}
	files, bytes := s.clear()
	c.bytes.Add(bytes)
	c.flushed[FlushColdScope].Add(uint64(files))
	return -bytes
}

// evictFiles frees bytes in these scopes, oldest files first. Files of one age
// are taken in no particular order.
func (c *Cache) evictFiles(scopes []*scope, bytes int64, why Flush) {
	var held [epochs]int64 // by age
	for _, s := range scopes {
		s.each(func(e *entry) bool {
			held[c.age(e.used.Load())] += e.bytes()
			return true
		})
	}
	oldest, older := epochs-1, int64(0)
	for oldest > 0 && older+held[oldest] < bytes {
		older += held[oldest]
		oldest--
	}
	limit := uint32(oldest)
	spare := bytes - older // to be freed among those of the limit's age
	for _, s := range scopes {
		c.sweep(s, why, func(e *entry) bool {
			switch age := c.age(e.used.Load()); {
			case age > limit:
				return true
			case age < limit || spare <= 0:
				return false
			}
			spare -= e.bytes()
			return true
		})
	}
}

// sweep removes the files of a scope that drop names.
func (c *Cache) sweep(s *scope, why Flush, drop func(*entry) bool) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		files, bytes := shard.sweep(drop, c.hashKey)
		c.account(s, bytes)
		shard.mu.Unlock()
		c.flushed[why].Add(uint64(files))
	}
}

// age returns how many epochs ago something was used, less than epochs.
func (c *Cache) age(used uint32) uint32 { return min(c.epoch.Load()-used, epochs-1) }
