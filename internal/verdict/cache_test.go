package verdict

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/assay-project/assay/scanner"
)

func TestKeepOnlyWhatMayBeRemembered(t *testing.T) {
	t.Parallel()
	layer := LayerScope("sha256:1")
	unmarked := scanner.CleanVerdict("g")
	unmarked.Mark = false
	forged := scanner.ErrorVerdict(errors.New("timeout"))
	forged.Mark, forged.Generation = true, "g"
	unscannable := scanner.UnscannableVerdict(scanner.ReasonLimits, "g")
	unscannable.Mark = true
	noGeneration := scanner.CleanVerdict("")
	noGeneration.Mark = true
	tests := []struct {
		name    string
		verdict scanner.Verdict
		current scanner.Generation
		scope   Scope
		refused Refusal // NumRefusals: kept
	}{
		{"clean", scanner.CleanVerdict("g"), "g", layer, NumRefusals},
		{"malicious", scanner.MaliciousVerdict("Eicar", "g"), "g", layer, NumRefusals},
		{"malicious without a name", scanner.MaliciousVerdict("", "g"), "g", layer, NumRefusals},
		{"error", scanner.ErrorVerdict(errors.New("x")), "g", layer, RefusedOutcome},
		{"error that claims a mark", forged, "g", layer, RefusedOutcome},
		{"unscannable that claims a mark", unscannable, "g", layer, RefusedOutcome},
		{"nothing", scanner.Verdict{}, "g", layer, RefusedOutcome},
		{"not marked", unmarked, "g", layer, RefusedUnmarked},
		{"generation unknown", noGeneration, "", layer, RefusedNoGeneration},
		{"generation changed during the scan", scanner.CleanVerdict("g"), "h", layer, RefusedOldGeneration},
		{"generation unknown after the scan", scanner.CleanVerdict("g"), "", layer, RefusedOldGeneration},
		{"signature too long", scanner.MaliciousVerdict(strings.Repeat("x", MaxSignature+1), "g"), "g", layer, RefusedSignature},
		{"scope that nobody uses", scanner.CleanVerdict("g"), "g", LayerScope("sha256:2"), RefusedScope},
		{"no scope", scanner.CleanVerdict("g"), "g", Scope{}, RefusedScope},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := acquired(Options{}, layer)
			s := c.Scanner("clamav", "1")
			kept := c.Keep(tt.scope, keyOf(1), 5, []Kept{{s, tt.current, tt.verdict}})
			v, known := one(c, tt.scope, keyOf(1), s, "g")
			st := c.Stats()
			if tt.refused < NumRefusals {
				if kept != 0 || known || st.Files != 0 || st.Refused[tt.refused] != 1 {
					t.Fatalf("kept %d, known %v, stats %+v", kept, known, st)
				}
				return
			}
			if kept != 1 || !known || v != tt.verdict || st.Files != 1 {
				t.Fatalf("kept %d, known %v: %+v", kept, known, v)
			}
			check(t, c)
		})
	}
}

// TestVerdictsArePerScanner: what one tenant's scanner says answers nobody who
// wants another scanner, another configuration or another generation.
func TestVerdictsArePerScanner(t *testing.T) {
	t.Parallel()
	layer, other := LayerScope("sha256:1", "dir 7"), LayerScope("sha256:1", "dir 8")
	c := acquired(Options{}, layer, other)
	weak, strong, tuned := c.Scanner("weak", "1"), c.Scanner("strong", "1"), c.Scanner("weak", "2")
	c.Keep(layer, keyOf(1), 5, []Kept{clean(weak, "g1")})
	got := make([]scanner.Verdict, 3)
	if known := c.Lookup(0, layer, keyOf(1), []Want{{strong, "g1"}, {weak, "g1"}, {tuned, "g1"}}, got); known != 0b010 {
		t.Fatalf("known %b", known)
	}
	if got[0] != (scanner.Verdict{}) || got[1] != scanner.CleanVerdict("g1") || got[2] != (scanner.Verdict{}) {
		t.Fatalf("got %+v", got)
	}
	for _, w := range []struct {
		id  Scope
		key FileKey
		gen scanner.Generation
	}{{layer, keyOf(1), "g2"}, {layer, keyOf(1), ""}, {layer, keyOf(2), "g1"}, {other, keyOf(1), "g1"}, {ContainerScope("c"), keyOf(1), "g1"}} {
		if _, known := one(c, w.id, w.key, weak, w.gen); known {
			t.Errorf("known in %v under %q", w.id, w.gen)
		}
	}
	c.Keep(layer, keyOf(1), 5, []Kept{malicious(strong, "g1", "Bad"), clean(weak, "g2")})
	if v, known := one(c, layer, keyOf(1), strong, "g1"); !known || v.Signature != "Bad" {
		t.Errorf("strong: %v %+v", known, v)
	}
	if _, known := one(c, layer, keyOf(1), weak, "g1"); known {
		t.Error("the weak scanner's old generation is still known")
	}
	if n := len(c.Explain(layer, keyOf(1))); n != 2 {
		t.Errorf("%d verdicts kept, want 2", n)
	}
	if st := c.Stats(); st.Flushed[FlushGeneration] != 1 {
		t.Errorf("flushed %v", st.Flushed)
	}
}

func TestScopeNames(t *testing.T) {
	t.Parallel()
	all := []Scope{
		{},
		LayerScope(), LayerScope(""), LayerScope("a"), LayerScope("a", ""), LayerScope("", "a"), LayerScope("a", "b"),
		LayerScope("ab"), ContainerScope("a"), ContainerScope(""),
	}
	seen := make(map[Scope]int)
	for i, s := range all {
		if j, twice := seen[s]; twice {
			t.Errorf("scopes %d and %d are equal", i, j)
		}
		seen[s] = i
	}
}

// TestFindStands: under one generation the malicious verdict stands, in
// whichever order two contradicting ones come.
func TestFindStands(t *testing.T) {
	t.Parallel()
	layer := LayerScope("l")
	for _, cleanFirst := range []bool{true, false} {
		c := acquired(Options{}, layer)
		s := c.Scanner("s", "")
		verdicts := []Kept{clean(s, "g"), malicious(s, "g", "Bad")}
		why := "refused"
		if !cleanFirst {
			verdicts[0], verdicts[1] = verdicts[1], verdicts[0]
		}
		for _, k := range verdicts {
			c.Keep(layer, keyOf(1), 1, []Kept{k})
		}
		if v, known := one(c, layer, keyOf(1), s, "g"); !known || v.Outcome != scanner.Malicious {
			t.Errorf("clean first %v: %+v", cleanFirst, v)
		}
		st := c.Stats()
		if n := st.Refused[RefusedConflict] + st.Flushed[FlushContradicted]; n != 1 {
			t.Errorf("clean first %v: %d contradictions counted (%s)", cleanFirst, n, why)
		}
		c.Keep(layer, keyOf(1), 1, []Kept{clean(s, "g2")})
		if v, known := one(c, layer, keyOf(1), s, "g2"); !known || v.Outcome != scanner.Clean {
			t.Errorf("a new generation cannot take the find back: %+v", v)
		}
	}
}

func TestManyScannersOnOneFile(t *testing.T) {
	t.Parallel()
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	var all []*Scanner
	for i := range maxVotes + 3 {
		s := c.Scanner(fmt.Sprint("scanner ", i), "")
		all = append(all, s)
		c.Keep(layer, keyOf(1), 1, []Kept{malicious(s, "g", fmt.Sprint("find ", i))})
		check(t, c)
	}
	for i, s := range all {
		v, known := one(c, layer, keyOf(1), s, "g")
		if known != (i >= 3) || known && v.Signature != fmt.Sprint("find ", i) {
			t.Errorf("scanner %d: known %v, %+v", i, known, v)
		}
	}
	if n := c.Stats().Flushed[FlushCrowded]; n != 3 {
		t.Errorf("crowded out: %d", n)
	}
}

func TestManyGenerations(t *testing.T) {
	t.Parallel()
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	s := c.Scanner("s", "")
	for i := range 10 * maxGenerations {
		gen := scanner.Generation(fmt.Sprint(i))
		c.Keep(layer, keyOf(uint64(i)), 1, []Kept{clean(s, gen)})
	}
	if _, known := one(c, layer, keyOf(10*maxGenerations-1), s, scanner.Generation(fmt.Sprint(10*maxGenerations-1))); !known {
		t.Error("the newest generation is not known")
	}
	if _, known := one(c, layer, keyOf(0), s, "0"); known {
		t.Error("a generation that was forgotten still matches")
	}
	if n := len(s.generations); n > maxGenerations {
		t.Errorf("%d generations", n)
	}
}

func TestScopeLives(t *testing.T) {
	t.Parallel()
	layer, box := LayerScope("l"), ContainerScope("c")
	c := New(Options{})
	s := c.Scanner("s", "")
	keep := func(id Scope) int { return c.Keep(id, keyOf(1), 1, []Kept{clean(s, "g")}) }
	known := func(id Scope) bool { _, ok := one(c, id, keyOf(1), s, "g"); return ok }
	for _, id := range []Scope{layer, box} {
		c.Acquire(id, "two users")
		c.Acquire(id, "two users")
		if keep(id) != 1 {
			t.Fatalf("%v: not kept", id)
		}
		c.Release(id)
		if !known(id) {
			t.Errorf("%v: gone with the first of two users", id)
		}
		c.Release(id)
		c.Release(id) // one too many: nothing
		if known(id) != (id == layer) {
			t.Errorf("%v: without users, known is %v", id, known(id))
		}
		if keep(id) != 0 {
			t.Errorf("%v: kept without users", id)
		}
	}
	c.Acquire(layer, "again")
	if !known(layer) || keep(layer) != 1 {
		t.Error("the layer's next container finds nothing")
	}
	if !c.Drop(layer) || c.Drop(layer) || known(layer) || keep(layer) != 0 {
		t.Error("the layer was not dropped, once")
	}
	c.Release(layer)
	c.Acquire(box, "")
	keep(box)
	if !c.Drop(box) || known(box) {
		t.Error("the container was not dropped")
	}
	st := c.Stats()
	if st.Bytes != 0 || st.Files != 0 || st.Flushed[FlushLayerGone] != 1 || st.Flushed[FlushContainerStopped] != 2 {
		t.Errorf("left over: %+v", st)
	}
	check(t, c)
}

// TestPutIntoADroppedScope: whoever found the scope before it was dropped puts
// nothing in afterwards.
func TestPutIntoADroppedScope(t *testing.T) {
	t.Parallel()
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	s, found := c.Scanner("s", ""), c.scopes.find(c.hashScope(&layer), &layer)
	c.Drop(layer)
	n := c.put(found, keyOf(1), 1, []vote{{gen: s.generation("g")}}, c.epoch.Load())
	if n != (kept{}) || c.bytes.Load() != 0 || found.files() != 0 || c.Stats().Refused[RefusedScope] != 1 {
		t.Errorf("put %+v, %d bytes", n, c.bytes.Load())
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	const files = 1000
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	s := c.Scanner("s", "")
	for i := range uint64(files) {
		c.Keep(layer, keyOf(i), 1, []Kept{clean(s, "g")})
	}
	for i := uint64(0); i < files; i += 2 {
		if !c.Forget(layer, keyOf(i)) || c.Forget(layer, keyOf(i)) {
			t.Fatalf("file %d was not forgotten, once", i)
		}
	}
	check(t, c)
	for i := range uint64(files) {
		if _, known := one(c, layer, keyOf(i), s, "g"); known != (i%2 == 1) {
			t.Errorf("file %d: known %v", i, known)
		}
	}
	if c.Forget(LayerScope("none"), keyOf(1)) {
		t.Error("forgot a file of no scope")
	}
	if n := c.Stats().Flushed[FlushForgotten]; n != files/2 {
		t.Errorf("forgotten: %d", n)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	layer := LayerScope("l")
	c := acquired(Options{Lanes: 4}, layer)
	s := c.Scanner("s", "1")
	c.Keep(layer, keyOf(1), 1, []Kept{clean(s, "g")})
	c.Keep(layer, keyOf(2), 1, []Kept{malicious(s, "h", "Bad")})
	for i := range 10 {
		c.Lookup(Lane(i*7), layer, keyOf(uint64(i)), []Want{{s, "g"}}, make([]scanner.Verdict, 1))
	}
	st := c.Stats()
	if len(st.Scopes) != 1 || len(st.Scanners) != 1 {
		t.Fatalf("%+v", st)
	}
	sc, sn := st.Scopes[0], st.Scanners[0]
	if sc.Hits != 1 || sc.Misses != 9 || sc.Files != 2 || sc.Users != 1 || sc.Label != layer.String() || sc.Bytes != st.Bytes {
		t.Errorf("scope: %+v", sc)
	}
	if sn.Hits != 1 || sn.Misses != 9 || sn.Malicious != 1 || sn.Verdicts["g"] != 1 || sn.Verdicts["h"] != 1 {
		t.Errorf("scanner: %+v", sn)
	}
}

func TestReasonsHaveNames(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for f := range NumFlushes + 1 {
		seen["flush "+f.String()] = true
	}
	for r := range NumRefusals + 1 {
		seen["refusal "+r.String()] = true
	}
	if len(seen) != int(NumFlushes)+int(NumRefusals)+2 || seen["flush "] || seen["refusal "] {
		t.Errorf("reasons without a name of their own: %v", seen)
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	layer, box, idle := LayerScope("l"), ContainerScope("c"), LayerScope("idle")
	c := acquired(Options{}, layer, box, idle)
	s, other := c.Scanner("s", "1"), c.Scanner("other", "1")
	sizes := []int64{700, 5, 30, 5, 100, 0, 9}
	for i, size := range sizes {
		c.Keep(layer, keyOf(uint64(i)), size, []Kept{clean(s, "old"), clean(other, "o")})
	}
	c.Keep(box, keyOf(100), 50, []Kept{clean(s, "old")})
	c.Keep(box, keyOf(101), 1, []Kept{clean(other, "o")})  // never s's
	c.Keep(layer, keyOf(102), 1, []Kept{clean(s, "new")})  // fresh
	c.Keep(idle, keyOf(103), 2, []Kept{clean(s, "older")}) // in a layer without users
	c.Release(idle)
	c.Restore(&Record{Scope: layer, Key: keyOf(104), Size: 3, Generation: s.Generation("old")}) // not asked for yet
	want := []int64{0, 5, 5, 9, 30, 50, 100, 700}
	for limit := 1; limit <= len(want)+1; limit++ {
		var got []int64
		q := StaleQuery{Scanner: s, Current: "new", Limit: limit}
		for {
			page := c.Stale(q)
			if len(page) > limit {
				t.Fatalf("limit %d: %d files", limit, len(page))
			}
			for _, f := range page {
				got = append(got, f.Size)
			}
			if len(page) == 0 {
				break
			}
			q.After = &page[len(page)-1]
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("limit %d: sizes %v, want %v", limit, got, want)
		}
	}
	if n := len(c.Stale(StaleQuery{Scanner: s, Current: "new", Limit: 100, All: true})); n != len(want)+2 {
		t.Errorf("all: %d", n)
	}
	// The same scanner with another configuration starts from the same files.
	if n := len(c.Stale(StaleQuery{Scanner: c.Scanner("s", "2"), Current: "new", Limit: 100})); n != len(want)+1 {
		t.Errorf("after a new configuration: %d", n)
	}
	page := c.Stale(StaleQuery{Scanner: s, Current: "new", Limit: 1})
	c.Keep(page[0].Scope, page[0].Key, page[0].Size, []Kept{clean(s, "new")})
	if n := len(c.Stale(StaleQuery{Scanner: s, Current: "new", Limit: 100})); n != len(want)-1 {
		t.Errorf("after a rescan: %d", n)
	}
}
