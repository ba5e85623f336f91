package verdict

import (
	"cmp"
	"slices"

	"github.com/assay-project/assay/scanner"
)

// A ScopeStats is one scope's numbers.
type ScopeStats struct {
	Scope  Scope
	Label  string // what people call it
	Users  int    // containers that use it now
	Files  int
	Bytes  int64  // of memory
	Hits   uint64 // lookups that were answered in full
	Misses uint64 // all others
	Age    int    // epochs since the last lookup: 0 is now, 64 is one turnover of the cache
}

// A ScannerStats is one scanner's numbers.
type ScannerStats struct {
	Name, Config string
	Verdicts     map[scanner.Generation]int // kept, by generation
	Malicious    int                        // of these
	Hits         uint64                     // verdicts that were wanted and known
	Misses       uint64                     // verdicts that were wanted and not known
}

// Stats are a cache's numbers since it was made.
type Stats struct {
	Files           int
	Bytes, MaxBytes int64 // of memory
	Scopes          []ScopeStats
	Scanners        []ScannerStats
	Flushed         [NumFlushes]uint64
	Refused         [NumRefusals]uint64
	Flights         FlightStats
}

// Totals are a cache's sums, of the scopes that it has now.
type Totals struct {
	Files           int
	Bytes, MaxBytes int64  // of memory
	Hits, Misses    uint64 // lookups that were answered in full, and others
}

// Totals sums up. The cost depends on the number of scopes, not of files.
func (c *Cache) Totals() Totals {
	t := Totals{Bytes: c.bytes.Load(), MaxBytes: c.maxBytes}
	for _, s := range c.scopes.list() {
		hits, misses := s.lanes.sum()
		t.Files, t.Hits, t.Misses = t.Files+s.files(), t.Hits+hits, t.Misses+misses
	}
	return t
}

// Stats counts what is kept. The cost is a walk over all files.
func (c *Cache) Stats() Stats {
	st := Stats{Bytes: c.bytes.Load(), MaxBytes: c.maxBytes, Flights: c.flights.stats()}
	for i := range c.flushed {
		st.Flushed[i] = c.flushed[i].Load()
	}
	for i := range c.refused {
		st.Refused[i] = c.refused[i].Load()
	}
	counts := make(map[*generation]*[2]int) // all, malicious
	for _, s := range c.scopes.list() {
		one := s.stats(c)
		st.Files += one.Files
		st.Scopes = append(st.Scopes, one)
		s.each(func(e *entry) bool { e.count(counts); return true })
	}
	slices.SortFunc(st.Scopes, func(a, b ScopeStats) int {
		return cmp.Or(cmp.Compare(a.Scope.Kind, b.Scope.Kind), cmp.Compare(a.Label, b.Label))
	})
	st.Scanners = c.scannerStats(counts)
	return st
}

func (s *scope) stats(c *Cache) ScopeStats {
	hits, misses := s.lanes.sum()
	return ScopeStats{
		Scope: s.id, Label: *s.label.Load(), Users: int(s.users.Load()), Files: s.files(), Bytes: s.bytes.Load(),
		Hits: hits, Misses: misses, Age: int(c.age(s.used.Load())),
	}
}

// count adds the entry's votes to the numbers of their generations.
func (e *entry) count(counts map[*generation]*[2]int) {
	for v := &e.votes; v != nil; v = v.more {
		for _, one := range v.pair {
			if one.gen == nil {
				continue
			}
			n := counts[one.gen]
			if n == nil {
				n = new([2]int)
				counts[one.gen] = n
			}
			n[0]++
			if !one.clean() {
				n[1]++
			}
		}
	}
}

func (c *Cache) scannerStats(counts map[*generation]*[2]int) []ScannerStats {
	var all []ScannerStats
	for _, s := range c.scanners.list() {
		one := ScannerStats{Name: s.name, Config: s.config, Verdicts: make(map[scanner.Generation]int)}
		one.Hits, one.Misses = s.lanes.sum()
		for g, n := range counts {
			if g.scanner == s {
				one.Verdicts[g.name] += n[0]
				one.Malicious += n[1]
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b ScannerStats) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Config, b.Config))
	})
	return all
}

// A Known is one scanner's verdict as it is kept.
type Known struct {
	Scanner *Scanner
	Verdict scanner.Verdict
}

// Explain returns everything that is kept about a file, of whatever generation.
// It counts as no lookup.
func (c *Cache) Explain(id Scope, key FileKey) []Known {
	_, e := c.locate(&id, &key)
	if e == nil {
		return nil
	}
	var b ballot
	b.load(e)
	var known []Known
	for _, v := range b.votes[:b.n] {
		known = append(known, Known{Scanner: v.gen.scanner, Verdict: v.verdict()})
	}
	return known
}
