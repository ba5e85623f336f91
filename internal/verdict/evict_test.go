package verdict

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/assay-project/assay/scanner"
)

// TestHotLayersStay streams ten times what fits through cold layers while one
// layer is being used, whose files must all stay.
func TestHotLayersStay(t *testing.T) {
	t.Parallel()
	const hotFiles, bound = 500, 1 << 20
	hot := LayerScope("hot")
	c := acquired(Options{MaxBytes: bound}, hot)
	s := c.Scanner("s", "")
	for i := range uint64(hotFiles) {
		c.Keep(hot, keyOf(i), 1, []Kept{clean(s, "g")})
	}
	n := uint64(hotFiles)
	for l := range 100 {
		cold := LayerScope(fmt.Sprint("cold ", l))
		c.Acquire(cold, "")
		for range 1000 {
			c.Keep(cold, keyOf(n), 1, []Kept{clean(s, "g")})
			n++
			if c.bytes.Load() > bound {
				t.Fatalf("%d bytes are more than %d", c.bytes.Load(), bound)
			}
			if _, known := one(c, hot, keyOf(n%hotFiles), s, "g"); !known {
				t.Fatalf("after %d cold files, file %d of the hot layer is gone", n, n%hotFiles)
			}
		}
		if l%2 == 0 {
			c.Release(cold)
		}
	}
	check(t, c)
	st := c.Stats()
	if st.Flushed[FlushColdScope] == 0 || st.Files < bound/230 {
		t.Errorf("evicted too much, or not by scope: %d files, %v", st.Files, st.Flushed)
	}
}

// TestHotFilesStay is the same within one layer, where only files can be evicted.
func TestHotFilesStay(t *testing.T) {
	t.Parallel()
	const hotFiles, bound = 500, 1 << 18
	layer := LayerScope("l")
	c := acquired(Options{MaxBytes: bound}, layer)
	s := c.Scanner("s", "")
	for i := range uint64(20_000) {
		c.Keep(layer, keyOf(i), 1, []Kept{clean(s, "g")})
		if i >= hotFiles {
			if _, known := one(c, layer, keyOf(i%hotFiles), s, "g"); !known {
				t.Fatalf("after %d files, the hot file %d is gone", i, i%hotFiles)
			}
		}
	}
	check(t, c)
	if st := c.Stats(); st.Flushed[FlushColdFile] == 0 || st.Flushed[FlushColdScope] != 0 || st.Files < bound/230 {
		t.Errorf("%d files, flushed %v", st.Files, st.Flushed)
	}
}

// TestEvictsNoMoreThanItMust frees a little among files of one age.
func TestEvictsNoMoreThanItMust(t *testing.T) {
	t.Parallel()
	const files, evicted = 1000, 100
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	s := c.Scanner("s", "")
	for i := range uint64(files) {
		c.Keep(layer, keyOf(i), 1, []Kept{clean(s, "g")})
	}
	c.evictFiles(c.scopes.list(), evicted*entryBytes, FlushColdFile)
	if st := c.Stats(); st.Files != files-evicted || st.Flushed[FlushColdFile] != evicted {
		t.Errorf("%d files are left, want %d", st.Files, files-evicted)
	}
	check(t, c)
}

// TestContainerHasAShare floods the cache from one container.
func TestContainerHasAShare(t *testing.T) {
	t.Parallel()
	const bound = 1 << 20
	layer, box := LayerScope("l"), ContainerScope("c")
	c := acquired(Options{MaxBytes: bound}, layer, box)
	s := c.Scanner("s", "")
	const files = 2000
	for i := range uint64(files) {
		c.Keep(layer, keyOf(i), 1, []Kept{clean(s, "g")})
	}
	for i := range uint64(20_000) {
		c.Keep(box, keyOf(i), 1, []Kept{clean(s, "g")})
	}
	st := c.Stats()
	for _, sc := range st.Scopes {
		if sc.Scope == box && sc.Bytes > bound/containerShare || sc.Scope == layer && sc.Files != files {
			t.Errorf("%+v", sc)
		}
	}
	if st.Flushed[FlushShare] == 0 || st.Flushed[FlushColdFile] != 0 {
		t.Errorf("flushed %v", st.Flushed)
	}
	check(t, c)
}

// TestDropIsOneStep shows that dropping does not look at files: it allocates
// nothing per file and leaves the tables to the collector.
func TestDropIsOneStep(t *testing.T) {
	layer := LayerScope("l")
	drop := func(files uint64) float64 {
		c := acquired(Options{}, layer)
		s := c.Scanner("s", "")
		for i := range files {
			c.Keep(layer, keyOf(i), 1, []Kept{clean(s, "g")})
		}
		read := testing.AllocsPerRun(1, func() { c.Drop(layer) })
		if c.bytes.Load() != 0 {
			t.Errorf("%d bytes left", c.bytes.Load())
		}
		return read
	}
	if few, many := drop(10), drop(20_000); few != many {
		t.Errorf("%v allocations for 10 files, %v for 20,000", few, many)
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	layer, late := LayerScope("l"), LayerScope("late")
	c := New(Options{MaxBytes: 256 << 10})
	s := c.Scanner("s", "1")
	g := s.Generation("g")
	for i, r := range []Record{
		{Scope: ContainerScope("c"), Generation: g},
		{Generation: g},
		{Scope: layer},
		{Scope: layer, Generation: s.Generation("")},
		{Scope: layer, Generation: g, Malicious: true, Signature: string(make([]byte, MaxSignature+1))},
	} {
		if c.Restore(&r) {
			t.Errorf("record %d was restored", i)
		}
	}
	if !c.Restore(&Record{Scope: layer, Label: "sha256:1", Key: keyOf(1), Size: 7, Generation: g, Malicious: true}) {
		t.Fatal("not restored")
	}
	if v, known := one(c, layer, keyOf(1), s, "g"); !known || v != scanner.MaliciousVerdict("", "g") {
		t.Errorf("%v %+v", known, v)
	}
	if st := c.Stats(); st.Scopes[0].Label != "sha256:1" || st.Scopes[0].Users != 0 {
		t.Errorf("%+v", st.Scopes[0])
	}
	n := uint64(2)
	for ; c.Restore(&Record{Scope: late, Key: keyOf(n), Generation: g}); n++ {
	}
	if st := c.Stats(); st.Refused[RefusedFull] != 1 || st.Bytes > st.MaxBytes || n < 1000 {
		t.Errorf("%d restored: %+v", n, st)
	}
	// What nobody has asked for since gives way first.
	c.Acquire(layer, "sha256:1")
	for i := range uint64(5000) {
		c.Keep(layer, keyOf(n+i), 1, []Kept{clean(s, "g")})
		if _, known := one(c, layer, keyOf(1), s, "g"); !known {
			t.Fatal("a file in use gave way to one that is not")
		}
	}
	if len(c.Explain(late, keyOf(2))) != 0 {
		t.Error("what was restored and never asked for is still there")
	}
	check(t, c)
}

// TestRecords walks what would be stored, and the journal that sees it come.
func TestRecords(t *testing.T) {
	t.Parallel()
	hot, cold, box := LayerScope("hot"), LayerScope("cold"), ContainerScope("c")
	c := acquired(Options{}, hot, cold, box)
	var j journal
	c.Attach(&j)
	s, w := c.Scanner("s", "1"), c.Scanner("w", "1")
	for _, id := range []Scope{hot, cold, box} {
		c.Keep(id, keyOf(1), 7, []Kept{clean(s, "g"), malicious(w, "h", "Bad")})
		c.Keep(id, keyOf(1), 7, []Kept{clean(s, "g")}) // no news
	}
	if len(j.records) != 4 {
		t.Errorf("the journal saw %d records, want 4", len(j.records))
	}
	c.epoch.Add(1)
	one(c, hot, keyOf(1), s, "g")
	var got []Record
	c.Records(func(r Record) bool { got = append(got, r); return true })
	if len(got) != 4 || got[0].Scope != hot || got[3].Scope != cold {
		t.Errorf("records %+v", got)
	}
	seen := make(map[Record]bool)
	for _, r := range got {
		seen[r] = true
	}
	for _, r := range j.records {
		if !seen[r] {
			t.Errorf("the journal saw %+v, which is not kept", r)
		}
	}
	n := 0
	c.Records(func(Record) bool { n++; return false })
	if n != 1 {
		t.Errorf("%d records after the last", n)
	}
	c.Drop(cold)
	c.Drop(box)
	c.Attach(nil)
	c.Drop(hot)
	if len(j.dropped) != 1 || j.dropped[0] != cold {
		t.Errorf("dropped %v", j.dropped)
	}
}

type journal struct {
	records []Record
	dropped []Scope
}

func (j *journal) Append(r Record) { j.records = append(j.records, r) }
func (j *journal) Drop(s Scope)    { j.dropped = append(j.dropped, s) }

// heap returns the live heap in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemoryPerFile measures a million files with the verdicts of two scanners,
// and that what the cache believes to use is what it uses.
func TestMemoryPerFile(t *testing.T) {
	const files, limit = 1_000_000, 200
	before := heap()
	c := New(Options{MaxBytes: 1 << 30})
	var scopes []Scope
	for i := range 50 {
		scopes = append(scopes, LayerScope(fmt.Sprint(i)))
		c.Acquire(scopes[i], "")
	}
	a, b := c.Scanner("a", ""), c.Scanner("b", "")
	for i := range uint64(files) {
		c.Keep(scopes[i%50], keyOf(i), 1, []Kept{clean(a, "g"), clean(b, "h")})
	}
	used := heap() - before
	believed := c.bytes.Load()
	t.Logf("%d bytes per file, of which %d are accounted for", used/files, believed/files)
	if used > limit*files {
		t.Errorf("%d bytes per file, want at most %d", used/files, limit)
	}
	if off := used - believed; off > used/10 || off < -used/10 {
		t.Errorf("uses %d bytes and believes %d", used, believed)
	}
	if st := c.Stats(); st.Files != files {
		t.Errorf("%d files", st.Files)
	}
}
