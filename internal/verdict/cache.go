package verdict

import (
	"hash/maphash"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"unique"

	"github.com/assay-project/assay/scanner"
)

const (
	// DefaultBytes is the bound on a cache's memory unless another one is given:
	// room for about 2.5 million files.
	DefaultBytes = 256 << 20
	// epochs is how many epochs pass while as much is kept as the bound allows.
	epochs = 64
	// restored is the epoch of what comes from the store: older than all else.
	restored = 0
	// maxLanes bounds what counters cost.
	maxLanes = 32
)

// MaxWanted is how many scanners one lookup can ask for. For those beyond,
// nothing is ever known.
const MaxWanted = 64

// Options of a cache. The zero value is valid.
type Options struct {
	MaxBytes int64 // bound on the memory of what is kept; 0 means DefaultBytes
	Lanes    int   // number of threads that look up at once; 0 means one per CPU
}

// A Cache remembers verdicts. All methods may be called from many goroutines.
type Cache struct {
	// Read by every lookup, changed rarely.
	seed     maphash.Seed
	lanes    int
	maxBytes int64
	epoch    atomic.Uint32
	journal  atomic.Pointer[Journal]
	scopes   registry
	scanners scanners

	_ [64]byte // what follows changes with every verdict that is kept

	bytes    atomic.Int64
	inserted atomic.Int64 // bytes ever kept
	flushed  [NumFlushes]atomic.Uint64
	refused  [NumRefusals]atomic.Uint64
	evicting sync.Mutex
	flights  flights
}

// New returns an empty cache.
func New(o Options) *Cache {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultBytes
	}
	if o.Lanes <= 0 {
		o.Lanes = runtime.GOMAXPROCS(0)
	}
	lanes := 1 << bits.Len(uint(min(o.Lanes, maxLanes)-1))
	c := &Cache{seed: maphash.MakeSeed(), lanes: lanes, maxBytes: o.MaxBytes}
	c.epoch.Store(epochs)
	c.flights.init()
	return c
}

// Scanner returns the scanner of this configured name whose driver's
// configuration hashes to config: the same for the same arguments.
func (c *Cache) Scanner(name, config string) *Scanner {
	return c.scanners.get(name, config, c.lanes)
}

// Acquire says that a container uses a scope: the container's own, or that of a
// layer below it. Until then nothing is kept for the scope. Each Acquire is
// undone by one [Cache.Release]. The label is what people call the scope, such
// as the layer's digest.
func (c *Cache) Acquire(id Scope, label string) {
	c.scopes.mu.Lock()
	defer c.scopes.mu.Unlock()
	s := c.ensure(id)
	s.label.Store(&label)
	s.users.Add(1)
}

// ensure returns the scope, made if need be. The caller holds scopes.mu.
func (c *Cache) ensure(id Scope) *scope {
	hash := c.hashScope(&id)
	s := c.scopes.find(hash, &id)
	if s == nil {
		s = newScope(id, c.lanes, c.epoch.Load())
		c.bytes.Add(s.ownBytes())
		c.scopes.add(hash, s)
	}
	return s
}

// Release undoes one Acquire. A container's scope without users is dropped; a
// layer's stays for the next container, for as long as the bound allows.
func (c *Cache) Release(id Scope) {
	c.scopes.mu.Lock()
	s := c.scopes.find(c.hashScope(&id), &id)
	if s == nil || s.users.Load() == 0 {
		c.scopes.mu.Unlock()
		return
	}
	last := s.users.Add(-1) == 0 && id.Kind == Container
	if last {
		c.detach(s)
	}
	c.scopes.mu.Unlock()
	if last {
		c.bury(s, FlushContainerStopped)
	}
}

// Drop forgets a scope with everything in it, users or not; the cost does not
// depend on how many files that are. It is for layers whose directory is gone.
// It reports whether the scope was there.
func (c *Cache) Drop(id Scope) bool {
	c.scopes.mu.Lock()
	s := c.scopes.find(c.hashScope(&id), &id)
	if s != nil {
		c.detach(s)
	}
	c.scopes.mu.Unlock()
	if s == nil {
		return false
	}
	why := FlushLayerGone
	if id.Kind == Container {
		why = FlushContainerStopped
	}
	c.bury(s, why)
	if id.Kind == Layer {
		if j := c.journal.Load(); j != nil {
			(*j).Drop(id)
		}
	}
	return true
}

// detach takes a scope out of the registry: lookups find nothing from here on,
// and nothing is put in any more. The caller holds scopes.mu.
func (c *Cache) detach(s *scope) {
	s.dead.Store(true)
	c.scopes.remove(c.hashScope(&s.id), s)
}

// bury gives back the memory of a scope that was detached.
func (c *Cache) bury(s *scope, why Flush) {
	files, bytes := s.clear()
	c.bytes.Add(bytes - s.ownBytes())
	c.flushed[why].Add(uint64(files))
}

// Forget removes one file from a scope and reports whether it was there: the
// scanned -> dirty transition, or a file that is gone.
func (c *Cache) Forget(id Scope, key FileKey) bool {
	s := c.scopes.find(c.hashScope(&id), &id)
	if s == nil {
		return false
	}
	hash := c.hashKey(&key)
	shard := s.shard(hash)
	shard.mu.Lock()
	found, bytes := shard.remove(hash, &key, c.hashKey)
	c.account(s, bytes)
	shard.mu.Unlock()
	if found {
		c.flushed[FlushForgotten].Add(1)
	}
	return found
}

// Has reports whether anything is kept about a file in a scope. It counts as no
// lookup, and neither locks nor allocates.
func (c *Cache) Has(id *Scope, key *FileKey) bool {
	_, e := c.locate(id, key)
	return e != nil
}

// locate returns a scope and a file's entry in it, nil for what is not there.
func (c *Cache) locate(id *Scope, key *FileKey) (*scope, *entry) {
	s := c.scopes.find(c.hashScope(id), id)
	if s == nil {
		return nil, nil
	}
	return s, s.find(c.hashKey(key), key)
}

// A Want names a scanner whose verdict is needed, and the only generation of it
// that will do: the one that a scan begun now would use.
type Want struct {
	Scanner    *Scanner
	Generation scanner.Generation
}

// Lookup returns what is known about a file. For each wanted scanner whose
// verdict under the wanted generation is known, it sets the element of got with
// the same index, and the bit of that index in known; it leaves the others as
// they are. At most [MaxWanted] scanners are looked at; got is at least as long
// as wanted. It neither locks nor allocates.
func (c *Cache) Lookup(at Lane, id Scope, key FileKey, wanted []Want, got []scanner.Verdict) (known uint64) {
	wanted = wanted[:min(len(wanted), MaxWanted)]
	s, e := c.locate(&id, &key)
	if s != nil {
		s.touch(c.epoch.Load())
	}
	if e != nil {
		e.touch(c.epoch.Load())
	}
	for i := range wanted {
		hit := e != nil && lookupVote(e, &wanted[i], &got[i])
		if hit {
			known |= 1 << i
		}
		wanted[i].Scanner.lanes.count(at, hit)
	}
	if s != nil {
		s.lanes.count(at, len(wanted) > 0 && bits.OnesCount64(known) == len(wanted))
	}
	return known
}

func lookupVote(e *entry, w *Want, got *scanner.Verdict) bool {
	g := w.Scanner.generation(w.Generation)
	if g == nil {
		return false
	}
	v, found := e.vote(g)
	if found {
		*got = v.verdict()
	}
	return found
}

// A Kept is one scanner's verdict on a file, for [Cache.Keep].
type Kept struct {
	Scanner *Scanner
	// Current is the scanner's generation now, after the scan. A verdict of any
	// other one is not kept.
	Current scanner.Generation
	Verdict scanner.Verdict
}

// Keep remembers verdicts on a file of size bytes, as far as they may be
// remembered, and returns how many now are. The caller has proof that the file
// had this identity, and no writer, from before the scan until after it.
func (c *Cache) Keep(id Scope, key FileKey, size int64, verdicts []Kept) int {
	var buffer [4]vote
	votes := buffer[:0]
	for i := range verdicts {
		v, refusal, ok := verdicts[i].vote()
		if !ok {
			c.refused[refusal].Add(1)
			continue
		}
		votes = append(votes, v)
	}
	if len(votes) == 0 {
		return 0
	}
	s := c.scopes.find(c.hashScope(&id), &id)
	if s == nil || s.users.Load() == 0 {
		c.refused[RefusedScope].Add(uint64(len(votes)))
		return 0
	}
	kept := c.put(s, key, size, votes, c.epoch.Load())
	c.bound(s)
	if j := c.journal.Load(); j != nil && id.Kind == Layer {
		for _, v := range votes[:kept.fresh] {
			(*j).Append(s.record(key, size, v))
		}
	}
	return kept.fresh + kept.again
}

// vote returns the verdict in the form in which it is kept, or why it is not.
func (k *Kept) vote() (v vote, why Refusal, ok bool) {
	switch {
	case k.Verdict.Outcome != scanner.Clean && k.Verdict.Outcome != scanner.Malicious:
		return v, RefusedOutcome, false
	case !k.Verdict.Mark:
		return v, RefusedUnmarked, false
	case k.Verdict.Generation == "":
		return v, RefusedNoGeneration, false
	case !k.Verdict.Generation.Matches(k.Current):
		return v, RefusedOldGeneration, false
	case len(k.Verdict.Signature) > MaxSignature:
		return v, RefusedSignature, false
	}
	v.gen = k.Scanner.generation(k.Verdict.Generation)
	if k.Verdict.Outcome == scanner.Malicious {
		v.found = unique.Make(k.Verdict.Signature)
	}
	return v, 0, true
}

// kept says how many votes were put: those that are news, and those that were
// known before.
type kept struct{ fresh, again int }

// put casts votes on a file. It moves those that are news to the front.
func (c *Cache) put(s *scope, key FileKey, size int64, cast []vote, epoch uint32) (n kept) {
	hash := c.hashKey(&key)
	shard := s.shard(hash)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if s.dead.Load() {
		c.refused[RefusedScope].Add(uint64(len(cast)))
		return kept{}
	}
	var b ballot
	old, at := shard.get(hash, &key)
	if old != nil {
		b.load(old)
		epoch = max(epoch, old.used.Load())
	}
	for _, v := range cast {
		switch became := b.add(v); became {
		case castAgain:
			n.again++
		case castConflict:
			c.refused[RefusedConflict].Add(1)
		default:
			c.tally(became)
			cast[n.fresh] = v
			n.fresh++
		}
	}
	if n.fresh > 0 {
		e := &entry{key: key, size: size, votes: b.list()}
		e.used.Store(epoch)
		c.account(s, shard.put(hash, e, old, at, c.hashKey))
		c.advance(e.bytes())
	}
	return n
}

// tally counts what a vote displaced.
func (c *Cache) tally(became cast) {
	switch became {
	case castReplaced:
		c.flushed[FlushGeneration].Add(1)
	case castWorse:
		c.flushed[FlushContradicted].Add(1)
	case castCrowded:
		c.flushed[FlushCrowded].Add(1)
	case castNew, castAgain, castConflict:
	}
}

// account adds a change in bytes to all sums but the shard's own.
func (c *Cache) account(s *scope, bytes int64) {
	s.bytes.Add(bytes)
	c.bytes.Add(bytes)
}

// advance moves the epoch on: time is measured in what is kept, so that "not
// used for long" means the same on a busy and on an idle node.
func (c *Cache) advance(bytes int64) {
	now := uint32(epochs + c.inserted.Add(bytes)/max(1, c.maxBytes/epochs))
	for {
		was := c.epoch.Load()
		if int32(now-was) <= 0 || c.epoch.CompareAndSwap(was, now) {
			return
		}
	}
}

func (c *Cache) hashKey(key *FileKey) uint64 { return maphash.Bytes(c.seed, key[:]) }

func (c *Cache) hashScope(id *Scope) uint64 { return maphash.Bytes(c.seed, id.ID[:]) }
