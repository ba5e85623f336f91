package verdict

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/assay-project/assay/scanner"
)

// A model is what a cache without bounds would say, in the simplest way.
type model struct {
	users map[Scope]int
	files map[Scope]map[FileKey]map[*Scanner]scanner.Verdict
}

func newModel() *model {
	return &model{make(map[Scope]int), make(map[Scope]map[FileKey]map[*Scanner]scanner.Verdict)}
}

func (m *model) keep(id Scope, key FileKey, verdicts []Kept) {
	if m.users[id] == 0 {
		return
	}
	for _, k := range verdicts {
		v := k.Verdict
		if !v.Mark || v.Generation == "" || v.Generation != k.Current || v.Outcome != scanner.Clean && v.Outcome != scanner.Malicious {
			continue
		}
		if m.files[id] == nil {
			m.files[id] = make(map[FileKey]map[*Scanner]scanner.Verdict)
		}
		if m.files[id][key] == nil {
			m.files[id][key] = make(map[*Scanner]scanner.Verdict)
		}
		if old := m.files[id][key][k.Scanner]; old.Outcome == scanner.Malicious && old.Generation == v.Generation {
			continue
		}
		m.files[id][key][k.Scanner] = v
	}
}

// A player plays operations that bytes name against a cache and its model.
type player struct {
	tb       testing.TB
	c        *Cache
	m        *model
	scopes   []Scope
	scanners []*Scanner
	gens     []scanner.Generation
	exact    bool // nothing is evicted: what the model knows, the cache knows
}

func newPlayer(tb testing.TB, o Options) *player {
	tb.Helper()
	p := &player{
		tb: tb, c: New(o), m: newModel(), exact: o.MaxBytes == 0,
		scopes: []Scope{LayerScope("1"), LayerScope("2"), LayerScope("3"), ContainerScope("1"), ContainerScope("2")},
		gens:   []scanner.Generation{"", "g1", "g2", "g3"},
	}
	for i := range 5 {
		p.scanners = append(p.scanners, p.c.Scanner(fmt.Sprint("s", i/2), fmt.Sprint(i)))
	}
	return p
}

// play plays one operation: what, on which scope and file, with which scanner
// and generations and outcome.
func (p *player) play(what, scope, file, who, with byte) {
	p.tb.Helper()
	id, key := p.scopes[int(scope)%len(p.scopes)], keyOf(uint64(file))
	s := p.scanners[int(who)%len(p.scanners)]
	gen, current := p.gens[int(with)%4], p.gens[int(with>>2)%4]
	switch what % 16 {
	case 0:
		p.c.Acquire(id, "")
		p.m.users[id]++
	case 1:
		p.c.Release(id)
		p.m.users[id] = max(0, p.m.users[id]-1)
		if p.m.users[id] == 0 && id.Kind == Container {
			delete(p.m.files, id)
		}
	case 2:
		if with%8 == 0 { // rarely
			p.c.Drop(id)
			p.m.users[id] = 0
			delete(p.m.files, id)
		}
	case 3:
		p.c.Forget(id, key)
		delete(p.m.files[id], key)
	case 4, 5, 6, 7, 8, 9:
		verdicts := []Kept{{s, current, p.verdict(with>>4, gen)}, {p.scanners[int(who>>4)%len(p.scanners)], gen, p.verdict(with>>5, gen)}}
		p.c.Keep(id, key, int64(file), verdicts)
		p.m.keep(id, key, verdicts)
	default:
		p.compare(id, key, current)
	}
}

func (p *player) verdict(kind byte, gen scanner.Generation) scanner.Verdict {
	v := scanner.Verdict{Mark: true, Generation: gen}
	switch kind % 8 {
	case 0:
		v.Outcome, v.Err = scanner.Error, errGone
	case 1:
		v.Outcome, v.Reason = scanner.Unscannable, scanner.ReasonLimits
	case 2, 3, 4:
		v.Outcome, v.Signature = scanner.Malicious, "Bad"
	case 5:
		v.Outcome, v.Mark = scanner.Clean, false
	default:
		v.Outcome = scanner.Clean
	}
	return v
}

// compare asks cache and model about a file.
func (p *player) compare(id Scope, key FileKey, gen scanner.Generation) {
	p.tb.Helper()
	got := make([]scanner.Verdict, len(p.scanners))
	var wanted []Want
	for _, s := range p.scanners {
		wanted = append(wanted, Want{s, gen})
	}
	known := p.c.Lookup(Lane(known(gen)), id, key, wanted, got)
	for i, s := range p.scanners {
		want, should := p.m.files[id][key][s]
		should = should && want.Generation.Matches(gen)
		is := known&(1<<i) != 0
		if is && !should || p.exact && should && !is || is && got[i] != want {
			p.tb.Fatalf("%v, %s/%s under %q: known %v as %+v, want %v as %+v", id, s.name, s.config, gen, is, got[i], should, want)
		}
	}
}

func known(gen scanner.Generation) int { return len(gen) }

// finish compares everything.
func (p *player) finish() {
	p.tb.Helper()
	for _, id := range p.scopes {
		for file := range 256 {
			for _, gen := range p.gens {
				p.compare(id, keyOf(uint64(file)), gen)
			}
		}
	}
	check(p.tb, p.c)
	if n := p.c.bytes.Load(); n > p.c.maxBytes {
		p.tb.Fatalf("%d bytes are more than %d", n, p.c.maxBytes)
	}
}

// TestCacheAgainstModel plays random operations: without a bound the cache says
// what the model says, with a tight one it never says anything else.
func TestCacheAgainstModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		o := Options{}
		if seed%2 == 1 {
			o.MaxBytes = 24 << 10
		}
		random := rand.New(rand.NewPCG(seed, 7))
		p := newPlayer(t, o)
		for _, id := range p.scopes {
			p.c.Acquire(id, "")
			p.m.users[id]++
		}
		for range 6000 {
			r := random.Uint64()
			p.play(byte(r), byte(r>>8), byte(r>>16), byte(r>>24), byte(r>>32))
		}
		p.finish()
		if st := p.c.Stats(); o.MaxBytes > 0 && st.Flushed[FlushColdFile]+st.Flushed[FlushColdScope]+st.Flushed[FlushShare] == 0 {
			t.Error("the bound was never reached")
		}
	}
}

func FuzzCache(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 4, 0, 1, 1, 0x75, 10, 0, 1, 1, 0x75}, false)
	f.Add([]byte{0, 3, 0, 0, 0, 4, 3, 1, 1, 0xd5, 1, 3, 0, 0, 0, 10, 3, 1, 1, 0x55}, true)
	f.Fuzz(func(t *testing.T, plays []byte, tight bool) {
		o := Options{}
		if tight {
			o.MaxBytes = 8 << 10
		}
		p := newPlayer(t, o)
		for ; len(plays) >= 5; plays = plays[5:] {
			p.play(plays[0], plays[1], plays[2], plays[3], plays[4])
		}
		check(t, p.c)
	})
}

// TestCacheUnderRace does everything at once. What a file's verdict is under a
// generation follows from its key, so that a wrong answer shows.
func TestCacheUnderRace(t *testing.T) {
	t.Parallel()
	const workers, rounds, files = 8, 4000, 200
	scopes := []Scope{LayerScope("1"), LayerScope("2"), ContainerScope("1")}
	c := acquired(Options{MaxBytes: 64 << 10, Lanes: 4}, scopes...)
	s := c.Scanner("s", "")
	truth := func(file uint64, gen scanner.Generation) scanner.Verdict {
		if (file+uint64(len(gen)))%3 == 0 {
			return scanner.MaliciousVerdict(fmt.Sprint(file), gen)
		}
		return scanner.CleanVerdict(gen)
	}
	var hits atomic.Uint64
	var wg sync.WaitGroup
	for n := range workers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 3))
			for range rounds {
				id, file := scopes[random.IntN(len(scopes))], random.Uint64N(files)
				gen := []scanner.Generation{"g", "gg"}[random.IntN(2)]
				switch random.IntN(40) {
				case 0:
					c.Forget(id, keyOf(file))
				case 1:
					c.Drop(id)
					c.Acquire(id, "")
				case 2:
					c.Acquire(id, "")
					c.Release(id)
				case 3:
					c.Stale(StaleQuery{Scanner: s, Current: gen, Limit: 3})
					c.Stats()
				case 4, 5, 6, 7, 8, 9, 10, 11, 12:
					c.Keep(id, keyOf(file), 1, []Kept{{s, gen, truth(file, gen)}})
				default:
					if v, known := one(c, id, keyOf(file), s, gen); known {
						hits.Add(1)
						if v != truth(file, gen) {
							t.Errorf("file %d under %s: %+v", file, gen, v)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	check(t, c)
	if hits.Load() == 0 {
		t.Error("nothing was ever known")
	}
}
