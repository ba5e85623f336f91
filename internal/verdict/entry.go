package verdict

import (
	"sync/atomic"
	"unique"

	"github.com/assay-project/assay/scanner"
)

// What memory costs, in bytes: the allocator's size classes of the types below.
const (
	entryBytes = 80
	votesBytes = 48
	slotBytes  = 8
	tableBytes = 32
	scopeBytes = 704
	laneBytes  = 128
)

// maxVotes is how many scanners' verdicts a file has room for.
const maxVotes = 16

// MaxSignature is the longest name of a signature that is kept, in bytes.
const MaxSignature = 512

// A vote is what one scanner said under one generation.
type vote struct {
	gen   *generation
	found unique.Handle[string] // the signature's name; the zero handle means clean
}

func (v vote) clean() bool { return v.found == unique.Handle[string]{} }

// verdict returns the vote as the scanner gave it.
func (v vote) verdict() scanner.Verdict {
	if v.clean() {
		return scanner.CleanVerdict(v.gen.name)
	}
	return scanner.MaliciousVerdict(v.found.Value(), v.gen.name)
}

// votes are the verdicts on one file, at most one per scanner. Two have room in
// the entry itself. The votes before the first one without a generation count.
type votes struct {
	pair [2]vote
	more *votes
}

// An entry is one file. But for used, nothing in it changes once it is in a table.
type entry struct {
	key  FileKey
	size int64         // of the file, in bytes
	used atomic.Uint32 // the epoch of the last use
	votes
}

// vote returns the vote cast under g.
func (e *entry) vote(g *generation) (vote, bool) {
	for v := &e.votes; v != nil; v = v.more {
		if v.pair[0].gen == g {
			return v.pair[0], true
		}
		if v.pair[1].gen == g {
			return v.pair[1], true
		}
	}
	return vote{}, false
}

// touch notes a use. The memory is written to once per epoch, not at each use.
func (e *entry) touch(epoch uint32) {
	if e.used.Load() != epoch {
		e.used.Store(epoch)
	}
}

// bytes returns the memory that the entry takes.
func (e *entry) bytes() int64 {
	n := int64(entryBytes)
	for v := e.more; v != nil; v = v.more {
		n += votesBytes
	}
	return n
}

// A ballot is an entry's votes laid out for a change.
type ballot struct {
	votes [maxVotes]vote
	n     int
}

func (b *ballot) load(e *entry) {
	for v := &e.votes; v != nil; v = v.more {
		for _, one := range v.pair {
			if one.gen != nil {
				b.votes[b.n] = one
				b.n++
			}
		}
	}
}

// A cast is what became of a vote.
type cast uint8

const (
	castNew      cast = iota // the scanner's first on this file
	castAgain                // known already
	castReplaced             // in place of another generation's
	castWorse                // a find, in place of the same generation's clean
	castConflict             // not taken: the same generation has found something
	castCrowded              // in place of another scanner's
)

// add casts a vote. The same generation never takes a find back: whatever made
// it say both, the file is not clean.
func (b *ballot) add(v vote) cast {
	for i := range b.n {
		old := &b.votes[i]
		switch {
		case old.gen.scanner != v.gen.scanner:
			continue
		case *old == v:
			return castAgain
		case old.gen == v.gen && !old.clean(): // of two finds, the first stands
			return castConflict
		}
		became := castReplaced
		if old.gen == v.gen {
			became = castWorse
		}
		*old = v
		return became
	}
	if b.n == maxVotes {
		copy(b.votes[:], b.votes[1:])
		b.votes[maxVotes-1] = v
		return castCrowded
	}
	b.votes[b.n] = v
	b.n++
	return castNew
}

// list returns the votes in the form in which an entry holds them.
func (b *ballot) list() votes {
	var first votes
	at := &first
	for i := range b.n {
		if i > 0 && i%2 == 0 {
			at.more = new(votes)
			at = at.more
		}
		at.pair[i%2] = b.votes[i]
	}
	return first
}
