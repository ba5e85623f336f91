package verdict

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/assay-project/assay/scanner"
)

// A StaleFile is a file that a scanner judged under another generation than its
// current one: its next open has to scan it.
type StaleFile struct {
	Scope Scope
	Key   FileKey
	Size  int64 // of the file, in bytes
}

// compare orders files by what scanning them costs, and then arbitrarily.
func (f StaleFile) compare(other StaleFile) int {
	return cmp.Or(
		cmp.Compare(f.Size, other.Size),
		bytes.Compare(f.Scope.ID[:], other.Scope.ID[:]),
		bytes.Compare(f.Key[:], other.Key[:]),
	)
}

// A StaleQuery says which stale files are wanted.
type StaleQuery struct {
	Scanner *Scanner
	Current scanner.Generation // of the scanner, now
	// After continues behind the last file of an earlier answer; nil begins anew.
	After *StaleFile
	// Limit is how many files are returned at most; at least 1.
	Limit int
	// All also wants files that nobody has asked for since they were restored,
	// and files of layers that no container uses.
	All bool
}

// Stale returns stale files, the cheapest to scan first: what a rescan in the
// background goes through, page by page, after a new generation. A file counts
// if a scanner of the same name has judged it, with whatever configuration, and
// the scanner itself has not under its current generation. The caller finds the
// file by its scope and key, scans it and keeps the verdict; what it cannot find
// any more it can [Cache.Forget].
//
// The cost of a page is a walk over all files in scope, some 0.4 s a million: ask
// for thousands at a time. It takes no lock.
func (c *Cache) Stale(q StaleQuery) []StaleFile {
	var found []StaleFile
	var dearest *StaleFile // of the page as it is now: what costs more is not on it
	trim := func() {
		slices.SortFunc(found, StaleFile.compare)
		if len(found) >= q.Limit {
			found = found[:q.Limit]
			last := found[q.Limit-1]
			dearest = &last
		}
	}
	current := q.Scanner.generation(q.Current)
	for _, s := range c.scopes.list() {
		if !q.All && s.users.Load() == 0 {
			continue
		}
		s.each(func(e *entry) bool {
			file := StaleFile{Scope: s.id, Key: e.key, Size: e.size}
			switch {
			case !q.All && e.used.Load() == restored:
			case !e.stale(q.Scanner.name, current):
			case q.After != nil && file.compare(*q.After) <= 0:
			case dearest != nil && file.compare(*dearest) >= 0:
			default:
				found = append(found, file)
			}
			if len(found) >= 2*q.Limit {
				trim()
			}
			return true
		})
	}
	trim()
	return found
}

// stale reports whether a scanner of this name has voted, but none under current.
func (e *entry) stale(name string, current *generation) (stale bool) {
	for v := &e.votes; v != nil; v = v.more {
		for _, one := range v.pair {
			switch {
			case one.gen == nil:
			case one.gen == current:
				return false
			case one.gen.scanner.name == name:
				stale = true
			}
		}
	}
	return stale
}
