package verdict

import (
	"sync"
	"sync/atomic"
)

// minSlots is the size of a shard's first table.
const minSlots = 8

// A table is a hash table with linear probing. Readers walk it without a lock;
// the shard's lock is held for every change. At least half of it is empty, since
// every entry that a search meets in vain is a cache line fetched for nothing.
type table struct {
	slots []atomic.Pointer[entry]
}

func newTable(slots int) *table { return &table{slots: make([]atomic.Pointer[entry], slots)} }

// slotsFor returns the size of a table that has room for n entries.
func slotsFor(n int) int {
	slots := minSlots
	for slots < 2*n {
		slots *= 2
	}
	return slots
}

func (t *table) bytes() int64 { return tableBytes + slotBytes*int64(len(t.slots)) }

// find returns the file's entry and its place, or nil and the place for one. For
// a reader without the lock, an entry that is being moved may be missing.
func (t *table) find(hash uint64, key *FileKey) (*entry, int) {
	mask := len(t.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		e := t.slots[i].Load()
		if e == nil || e.key == *key {
			return e, i
		}
	}
}

// add puts an entry in that is known not to be there.
func (t *table) add(hash uint64, e *entry) {
	mask := len(t.slots) - 1
	i := int(hash) & mask
	for t.slots[i].Load() != nil {
		i = (i + 1) & mask
	}
	t.slots[i].Store(e)
}

// A shard is a part of a scope's files.
type shard struct {
	table atomic.Pointer[table]
	mu    sync.Mutex // held for every change
	files int        // guarded by mu
	bytes int64      // of the table and its entries; guarded by mu
}

// find returns the file's entry or nil. It takes no lock.
func (s *shard) find(hash uint64, key *FileKey) *entry {
	t := s.table.Load()
	if t == nil {
		return nil
	}
	e, _ := t.find(hash, key)
	return e
}

// get returns the file's entry or nil, and its place for put. The caller holds mu.
func (s *shard) get(hash uint64, key *FileKey) (e *entry, at int) {
	if t := s.table.Load(); t != nil {
		return t.find(hash, key)
	}
	return nil, 0
}

// put makes e the file's entry, in place of what get returned, and returns the
// change in bytes. The caller still holds mu.
func (s *shard) put(hash uint64, e, old *entry, at int, hashOf func(*FileKey) uint64) (bytes int64) {
	before := s.bytes
	s.bytes += e.bytes()
	t := s.table.Load()
	switch {
	case old != nil:
		s.bytes -= old.bytes()
		t.slots[at].Store(e)
		return s.bytes - before
	case t == nil || 2*(s.files+1) > len(t.slots):
		s.rebuild(slotsFor(s.files+1), nil, hashOf).add(hash, e)
	default:
		t.slots[at].Store(e)
	}
	s.files++
	return s.bytes - before
}

// rebuild replaces the table by one of the given size, without the entries that
// drop names. The caller holds mu, keeps files right, and knows there is room.
func (s *shard) rebuild(slots int, drop func(*entry) bool, hashOf func(*FileKey) uint64) *table {
	old, next := s.table.Load(), newTable(slots)
	s.bytes += next.bytes()
	if old != nil {
		s.bytes -= old.bytes()
		for i := range old.slots {
			e := old.slots[i].Load()
			switch {
			case e == nil:
			case drop != nil && drop(e):
				s.bytes -= e.bytes()
			default:
				next.add(hashOf(&e.key), e)
			}
		}
	}
	s.table.Store(next)
	return next
}

// sweep removes the entries that drop names and returns how many there were and
// the change in bytes. The caller holds mu.
func (s *shard) sweep(drop func(*entry) bool, hashOf func(*FileKey) uint64) (files int, bytes int64) {
	t := s.table.Load()
	if t == nil {
		return 0, 0
	}
	doomed := make(map[*entry]struct{})
	for i := range t.slots {
		if e := t.slots[i].Load(); e != nil && drop(e) {
			doomed[e] = struct{}{}
		}
	}
	switch len(doomed) {
	case 0:
		return 0, 0
	case s.files:
		return s.clear()
	}
	before := s.bytes
	s.files -= len(doomed)
	s.rebuild(slotsFor(s.files), func(e *entry) bool { _, is := doomed[e]; return is }, hashOf)
	return len(doomed), s.bytes - before
}

// remove takes one file out. What follows it in the table moves up, so that
// everything is still found. The caller holds mu.
func (s *shard) remove(hash uint64, key *FileKey, hashOf func(*FileKey) uint64) (found bool, bytes int64) {
	t := s.table.Load()
	if t == nil {
		return false, 0
	}
	e, gap := t.find(hash, key)
	if e == nil {
		return false, 0
	}
	mask := len(t.slots) - 1
	for i := (gap + 1) & mask; ; i = (i + 1) & mask {
		next := t.slots[i].Load()
		if next == nil {
			break
		}
		home := int(hashOf(&next.key)) & mask
		if (i-home)&mask >= (i-gap)&mask { // it may stand in the gap
			t.slots[gap].Store(next)
			gap = i
		}
	}
	t.slots[gap].Store(nil)
	s.files--
	s.bytes -= e.bytes()
	return true, -e.bytes()
}

// clear removes everything, in one step. The caller holds mu.
func (s *shard) clear() (files int, bytes int64) {
	files, bytes = s.files, -s.bytes
	s.table.Store(nil)
	s.files, s.bytes = 0, 0
	return files, bytes
}

// each calls yield for every entry, without a lock, until it returns false.
func (s *shard) each(yield func(*entry) bool) bool {
	t := s.table.Load()
	if t == nil {
		return true
	}
	for i := range t.slots {
		if e := t.slots[i].Load(); e != nil && !yield(e) {
			return false
		}
	}
	return true
}
