package verdict

import (
	"slices"
	"unique"

	"github.com/assay-project/assay/scanner"
)

// A Generation is one state of one [Scanner]'s knowledge. It is valid only with
// the cache that it comes from.
type Generation struct{ g *generation }

// Generation returns a generation of the scanner by name; its zero value for "".
func (s *Scanner) Generation(name scanner.Generation) Generation {
	return Generation{s.generation(name)}
}

// Scanner returns whose generation it is.
func (g Generation) Scanner() *Scanner { return g.g.scanner }

// Name returns what the scanner calls the generation.
func (g Generation) Name() scanner.Generation { return g.g.name }

// A Record is one scanner's verdict on one file of a layer: what survives a
// restart.
type Record struct {
	Scope      Scope
	Label      string // what people call the scope
	Key        FileKey
	Size       int64 // of the file, in bytes
	Generation Generation
	Malicious  bool
	Signature  string // set only if malicious
}

// A Journal is told what is kept for layers, by whoever keeps it. Its methods
// return without waiting for anything.
type Journal interface {
	// Append says that a verdict is kept.
	Append(r Record)
	// Drop says that a layer is gone, and all its verdicts with it.
	Drop(s Scope)
}

// Attach makes j the cache's journal from now on, in place of the one before;
// nil means none.
func (c *Cache) Attach(j Journal) {
	if j == nil {
		c.journal.Store(nil)
		return
	}
	c.journal.Store(&j)
}

// record returns a vote on a file of this scope as a record.
func (s *scope) record(key FileKey, size int64, v vote) Record {
	r := Record{Scope: s.id, Label: *s.label.Load(), Key: key, Size: size, Generation: Generation{v.gen}}
	if !v.clean() {
		r.Malicious, r.Signature = true, v.found.Value()
	}
	return r
}

// Restore puts a record back that an earlier process made, and reports whether
// there was room: nothing is evicted for it. It counts as unused until it is
// looked up, and is not told to the journal. The generation is one of this
// cache's scanners. It borrows r.
func (c *Cache) Restore(r *Record) bool {
	if r.Scope.Kind != Layer || r.Generation.g == nil || len(r.Signature) > MaxSignature {
		return false
	}
	if c.bytes.Load()+entryBytes > c.maxBytes/16*15 {
		c.refused[RefusedFull].Add(1)
		return false
	}
	v := vote{gen: r.Generation.g}
	if r.Malicious {
		v.found = unique.Make(r.Signature)
	}
	n := c.put(c.restoreScope(r), r.Key, r.Size, []vote{v}, restored)
	return n.fresh+n.again > 0
}

// restoreScope returns the record's scope, made if need be. It has no users.
func (c *Cache) restoreScope(r *Record) *scope {
	if s := c.scopes.find(c.hashScope(&r.Scope), &r.Scope); s != nil {
		return s
	}
	c.scopes.mu.Lock()
	defer c.scopes.mu.Unlock()
	s := c.ensure(r.Scope)
	if s.users.Load() == 0 {
		label := r.Label
		s.label.Store(&label)
		s.used.Store(restored)
	}
	return s
}

// Records calls yield for every verdict that is kept for a layer, those of the
// most recently used layers first, until it returns false. What changes
// meanwhile may or may not be seen. It holds no lock.
func (c *Cache) Records(yield func(Record) bool) {
	scopes := c.coldest()
	for _, s := range slices.Backward(scopes) {
		if s.id.Kind != Layer {
			continue
		}
		more := s.each(func(e *entry) bool {
			var b ballot
			b.load(e)
			for _, v := range b.votes[:b.n] {
				if !yield(s.record(e.key, e.size, v)) {
					return false
				}
			}
			return true
		})
		if !more {
			return
		}
	}
}
