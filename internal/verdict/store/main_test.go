package store

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// writerVariable makes the test binary write into the store that it names, for
// ever; see TestKilledWhileWriting.
const writerVariable = "ASSAY_STORE_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerVariable); dir != "" {
		if err := writeForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	kerneltest.Main(m)
}

// eager never waits where the default does.
func eager() Options { return Options{Every: time.Millisecond, Retry: 1, Repair: 1} }

// A file's verdict follows from its number, so that a wrong one shows.

func keyOf(n uint64) verdict.FileKey {
	var k verdict.FileKey
	for i := range 3 {
		binary.LittleEndian.PutUint64(k[8*i:], (n+1)*0x9e3779b97f4a7c15>>i)
	}
	return k
}

func layerOf(n uint64) verdict.Scope { return verdict.LayerScope(fmt.Sprint("sha256:", n%7)) }

func verdictOf(n uint64, gen scanner.Generation) scanner.Verdict {
	if (n+uint64(len(gen)))%5 == 0 {
		return scanner.MaliciousVerdict(fmt.Sprint("Bad-", n%50), gen)
	}
	return scanner.CleanVerdict(gen)
}

// newCache returns a cache in which all layers are in use.
func newCache() *verdict.Cache {
	c := verdict.New(verdict.Options{})
	for n := range uint64(7) {
		c.Acquire(layerOf(n), fmt.Sprint("sha256:", n))
	}
	return c
}

// keep keeps the verdicts of two scanners on files from, and up to, but not to.
func keep(c *verdict.Cache, from, to uint64) {
	for n := from; n < to; n++ {
		c.Keep(layerOf(n), keyOf(n), int64(n), []verdict.Kept{
			{Scanner: c.Scanner("a", "1"), Current: "g", Verdict: verdictOf(n, "g")},
			{Scanner: c.Scanner("b", "2"), Current: "hh", Verdict: verdictOf(n, "hh")},
		})
	}
}

// count returns how many verdicts on files below n a cache knows, and fails if
// one is wrong or if there are others.
func count(tb testing.TB, c *verdict.Cache, n uint64) int {
	tb.Helper()
	known := 0
	got := make([]scanner.Verdict, 2)
	wanted := []verdict.Want{{Scanner: c.Scanner("a", "1"), Generation: "g"}, {Scanner: c.Scanner("b", "2"), Generation: "hh"}}
	for i := range n {
		bits := c.Lookup(0, layerOf(i), keyOf(i), wanted, got)
		for w := range wanted {
			if bits&(1<<w) == 0 {
				continue
			}
			known++
			if got[w] != verdictOf(i, wanted[w].Generation) {
				tb.Fatalf("file %d: %+v", i, got[w])
			}
		}
	}
	all := 0
	c.Records(func(r verdict.Record) bool {
		all++
		var layer uint64
		if _, err := fmt.Sscanf(r.Label, "sha256:%d", &layer); err != nil || r.Scope != layerOf(layer) {
			tb.Fatalf("layer %v is called %q", r.Scope, r.Label)
		}
		if r.Size < 0 || uint64(r.Size) >= n || r.Key != keyOf(uint64(r.Size)) {
			tb.Fatalf("size %d is not the file's", r.Size)
		}
		return true
	})
	if all != known {
		tb.Fatalf("%d verdicts are kept, of which %d are right", all, known)
	}
	return known
}

// open opens a store into a new cache.
func open(tb testing.TB, dir string, o Options) (*Store, *verdict.Cache) {
	tb.Helper()
	c := newCache()
	s, err := Open(dir, c, o)
	if err != nil {
		tb.Fatal(err)
	}
	c.Attach(s)
	tb.Cleanup(func() {
		if err := s.Close(tb.Context()); err != nil && tb.Context().Err() == nil {
			tb.Error(err)
		}
		<-s.stopped
	})
	return s, c
}

func closeStore(tb testing.TB, s *Store) {
	tb.Helper()
	if err := s.Close(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// written returns a directory with a store of this many files.
func written(tb testing.TB, files uint64) string {
	tb.Helper()
	dir := tb.TempDir()
	chmod(tb, dir, 0o700)
	s, c := open(tb, dir, eager())
	keep(c, 0, files)
	if err := s.Flush(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	closeStore(tb, s)
	return dir
}

func chmod(tb testing.TB, name string, mode os.FileMode) {
	tb.Helper()
	if err := os.Chmod(name, mode); err != nil {
		tb.Fatal(err)
	}
}
