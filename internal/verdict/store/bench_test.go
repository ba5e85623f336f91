package store

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

const million = 1_000_000

// fill keeps one clean verdict on each of many files.
func fill(c *verdict.Cache, files uint64, told func(n int)) {
	a := c.Scanner("clamav", "b1946ac92492d2347c6235b4d2611184")
	const gen = "ClamAV 1.4.6/27500/Mon Nov 23 09:00:00 2026"
	verdicts := []verdict.Kept{{Scanner: a, Current: gen, Verdict: scanner.CleanVerdict(gen)}}
	for n := range files {
		c.Keep(layerOf(n), keyOf(n), int64(n), verdicts)
		if n%batchLength == 0 {
			told(int(n))
		}
	}
}

// BenchmarkLoad opens a store with a million verdicts.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	s, c := open(b, dir, Options{})
	began := time.Now()
	fill(c, million, func(int) { _ = s.Flush(b.Context()) })
	closeStore(b, s)
	write := time.Since(began)
	var took, cpu time.Duration
	n := 0
	for b.Loop() {
		runtime.GC() // of the cache before
		cpu -= cpuTime(b)
		s, err := Open(dir, newCache(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		cpu += cpuTime(b)
		took += s.Status().LoadTime
		n++
		closeStore(b, s)
	}
	b.ReportMetric(float64(took.Milliseconds())/float64(n), "ms-until-ready")
	b.ReportMetric(float64(cpu.Milliseconds())/float64(n), "cpu-ms")
	b.ReportMetric(float64(write.Milliseconds()), "ms-to-write")
	b.ReportMetric(float64(s.Status().Bytes)/million, "bytes/verdict")
}

// cpuTime returns the processor time of this process, which tells on a busy
// machine what a load would take on an idle one.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRewrite(b *testing.B) {
	dir := b.TempDir()
	s, c := open(b, dir, Options{Repair: 1})
	c.Attach(nil)
	fill(c, million, func(int) {})
	for b.Loop() {
		s.gaps.Store(true)
		if err := s.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppend is what the journal adds to keeping a verdict, the loss of
// what the queue has no room for included.
func BenchmarkAppend(b *testing.B) {
	s, c := open(b, b.TempDir(), Options{Repair: 1 << 40})
	r := verdict.Record{Scope: layerOf(1), Generation: c.Scanner("a", "1").Generation("g")}
	b.ReportAllocs()
	for b.Loop() {
		s.Append(r)
	}
}
