package verdict

import (
	"slices"
	"sync"
	"sync/atomic"
)

// shardsPerScope bounds how long a writer holds others up: a table that grows is
// a sixteenth of the scope's. A power of two.
const shardsPerScope = 16

// A scope is the files of one Scope.
type scope struct {
	id     Scope
	label  atomic.Pointer[string]
	users  atomic.Int32  // changed under registry.mu
	used   atomic.Uint32 // the epoch of the last lookup
	dead   atomic.Bool   // taken out of the registry: takes nothing any more
	bytes  atomic.Int64  // of the scope with all that is in it
	shards [shardsPerScope]shard
	lanes  lanes
}

func newScope(id Scope, lanesEach int, epoch uint32) *scope {
	s := &scope{id: id, lanes: make(lanes, lanesEach)}
	s.label.Store(new(string))
	s.used.Store(epoch)
	s.bytes.Store(s.ownBytes())
	return s
}

// ownBytes returns what the scope takes without files.
func (s *scope) ownBytes() int64 { return scopeBytes + laneBytes*int64(len(s.lanes)) }

func (s *scope) shard(hash uint64) *shard { return &s.shards[hash>>60%shardsPerScope] }

func (s *scope) find(hash uint64, key *FileKey) *entry { return s.shard(hash).find(hash, key) }

// touch notes a use. The memory is written to once per epoch.
func (s *scope) touch(epoch uint32) {
	if s.used.Load() != epoch {
		s.used.Store(epoch)
	}
}

// clear removes all files; the cost does not depend on their number.
func (s *scope) clear() (files int, bytes int64) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		n, b := shard.clear()
		s.bytes.Add(b)
		shard.mu.Unlock()
		files += n
		bytes += b
	}
	return files, bytes
}

func (s *scope) files() (n int) {
	for i := range s.shards {
		s.shards[i].mu.Lock()
		n += s.shards[i].files
		s.shards[i].mu.Unlock()
	}
	return n
}

// each calls yield for every entry, without a lock, until it returns false.
func (s *scope) each(yield func(*entry) bool) bool {
	for i := range s.shards {
		if !s.shards[i].each(yield) {
			return false
		}
	}
	return true
}

// registryBuckets is the size of the registry, which never grows.
const registryBuckets = 1024

// A registry is the scopes of a cache. Readers take no lock.
type registry struct {
	mu      sync.Mutex // held for every change
	buckets [registryBuckets]atomic.Pointer[[]*scope]
}

func (r *registry) find(hash uint64, id *Scope) *scope {
	list := r.buckets[hash%registryBuckets].Load()
	if list == nil {
		return nil
	}
	for _, s := range *list {
		if s.id == *id {
			return s
		}
	}
	return nil
}

// add puts a scope in that is not there yet. The caller holds mu.
func (r *registry) add(hash uint64, s *scope) {
	bucket := &r.buckets[hash%registryBuckets]
	var next []*scope
	if list := bucket.Load(); list != nil {
		next = slices.Clone(*list)
	}
	next = append(next, s)
	bucket.Store(&next)
}

// remove takes a scope out. The caller holds mu.
func (r *registry) remove(hash uint64, s *scope) {
	bucket := &r.buckets[hash%registryBuckets]
	next := slices.DeleteFunc(slices.Clone(*bucket.Load()), func(other *scope) bool { return other == s })
	if len(next) == 0 {
		bucket.Store(nil)
		return
	}
	bucket.Store(&next)
}

func (r *registry) list() []*scope {
	var all []*scope
	for i := range r.buckets {
		if list := r.buckets[i].Load(); list != nil {
			all = append(all, *list...)
		}
	}
	return all
}
