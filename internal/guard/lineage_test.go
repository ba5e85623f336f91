package guard

import (
	"testing"

	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// TestSeenInTurn: more files than one place has room for, read in turn over and over,
// are each found to have been seen before, sooner or later.
func TestSeenInTurn(t *testing.T) {
	cache := verdict.New(verdict.Options{})
	l := newLineage(&Memory{Cache: cache}, "c")
	l.acquire()
	defer l.release()
	kept := []verdict.Kept{{Scanner: cache.Scanner("s", ""), Current: "1", Verdict: scanner.CleanVerdict("1")}}
	var files []layer.Identity
	for i := range seenWays + 2 {
		sum := [24]byte{0: 1, 4: byte(i + 1)} // one place, tags of their own
		files = append(files, layer.IdentityOf(sum))
		if n := cache.Keep(l.own, sum, 1, kept); n != 1 {
			t.Fatalf("%d verdicts kept", n)
		}
	}
	again := map[layer.Identity]bool{}
	for range 1000 {
		for _, id := range files {
			f, found := l.find(id, true)
			if !found || f.scope != &l.own || f.pristine {
				t.Fatalf("%v: %+v, %v", id, f, found)
			}
			again[id] = again[id] || f.again
		}
	}
	if len(again) != len(files) {
		t.Fatal("not every file was looked at")
	}
	for id, seen := range again {
		if !seen {
			t.Errorf("%v was read a thousand times and never seen again", id)
		}
	}
}
