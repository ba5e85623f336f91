package verdict

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/assay-project/assay/scanner"
)

func filled(b *testing.B, files uint64) (*Cache, Scope, []Want) {
	b.Helper()
	layer := LayerScope("l")
	c := acquired(Options{MaxBytes: 1 << 30}, layer)
	x, y := c.Scanner("x", ""), c.Scanner("y", "")
	for i := range files {
		c.Keep(layer, keyOf(i), 1, []Kept{clean(x, "g"), clean(y, "g")})
	}
	return c, layer, []Want{{x, "g"}, {y, "g"}}
}

// BenchmarkLookup is a hit with two scanners, by number of goroutines: on one
// file that all of them want, on 2,000 files, and on a million.
func BenchmarkLookup(b *testing.B) {
	for _, files := range []uint64{1, 2000, 1_000_000} {
		c, layer, wanted := filled(b, files)
		keys := make([]FileKey, min(files, 1<<16))
		for i := range keys {
			keys[i] = keyOf(uint64(i) * (files / uint64(len(keys))))
		}
		for _, openers := range []int{1, 2, 4, 16} {
			b.Run(fmt.Sprintf("files=%d/goroutines-per-cpu=%d", files, openers), func(b *testing.B) {
				var lanes atomic.Uint32
				b.ReportAllocs()
				b.SetParallelism(openers)
				b.RunParallel(func(pb *testing.PB) {
					lane := Lane(lanes.Add(1))
					mine := []Want{wanted[0], wanted[1]}
					got := make([]scanner.Verdict, 2)
					for i := 0; pb.Next(); i++ {
						if c.Lookup(lane, layer, keys[i%len(keys)], mine, got) != 3 {
							b.Error("a miss")
							return
						}
					}
				})
			})
		}
	}
}

func BenchmarkLookupSerial(b *testing.B) {
	for _, files := range []uint64{1, 2000, 1_000_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			c, layer, wanted := filled(b, files)
			keys := make([]FileKey, min(files, 1<<16))
			for i := range keys {
				keys[i] = keyOf(uint64(i) * (files / uint64(len(keys))))
			}
			got := make([]scanner.Verdict, 2)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c.Lookup(0, layer, keys[i%len(keys)], wanted, got)
			}
		})
	}
}

// BenchmarkSettle is the whole fast path: look up, and settle two stages.
func BenchmarkSettle(b *testing.B) {
	layer, file := LayerScope("l"), &scanner.File{}
	c := acquired(Options{}, layer)
	x, y := &counting{gen: "g"}, &counting{gen: "h"}
	plan := c.NewPlan([]scanner.Stage{
		{Scanners: []scanner.Named{{Name: "x", Scanner: x}}}, {Scanners: []scanner.Named{{Name: "y", Scanner: y}}},
	}, config)
	c.Keep(layer, keyOf(1), 1, []Kept{clean(plan.scanners[0], "g"), clean(plan.scanners[1], "h")})
	view := plan.NewView()
	b.ReportAllocs()
	for b.Loop() {
		view.Look(0, layer, keyOf(1))
		if _, settled := view.Settle(file); !settled {
			b.Fatal("not settled")
		}
	}
}

// BenchmarkKeep puts new files into one layer, evicting once the bound is reached.
func BenchmarkKeep(b *testing.B) {
	for _, bound := range []int64{1 << 40, 16 << 20} {
		b.Run(fmt.Sprintf("bound=%dMiB", bound>>20), func(b *testing.B) {
			layer := LayerScope("l")
			c := acquired(Options{MaxBytes: bound}, layer)
			verdicts := []Kept{clean(c.Scanner("x", ""), "g"), clean(c.Scanner("y", ""), "g")}
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				c.Keep(layer, keyOf(i), 1, verdicts)
			}
		})
	}
}

// BenchmarkStale pages once through a million stale files.
func BenchmarkStale(b *testing.B) {
	c, _, wanted := filled(b, 1_000_000)
	for b.Loop() {
		if len(c.Stale(StaleQuery{Scanner: wanted[0].Scanner, Current: "new", Limit: 4096})) != 4096 {
			b.Fatal("too few")
		}
	}
}
