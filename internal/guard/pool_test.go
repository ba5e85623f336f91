package guard

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/tenant"
)

func newTestPool(queue, workers int) *pool {
	g := &Guard{opts: Options{Queue: queue, Workers: workers}}
	return newPool(g, "test", &policy{Tenant: tenant.Tenant{Name: "test"}})
}

// TestPoolIsBounded fills a pool: so many workers, so many queued, and no more;
// and nobody who submits ever waits.
func TestPoolIsBounded(t *testing.T) {
	const queue, workers = 3, 2
	p := newTestPool(queue, workers)
	started, proceed := make(chan struct{}, 16), make(chan struct{})
	var ran atomic.Int64
	work := func() {
		started <- struct{}{}
		<-proceed
		ran.Add(1)
	}
	for range workers {
		if !p.submit(job{run: work}) {
			t.Fatal("refused with idle workers")
		}
		receive(t, "a worker", started)
	}
	for range queue {
		if !p.submit(job{run: work}) {
			t.Fatal("refused with room in the queue")
		}
	}
	if p.submit(job{run: work}) {
		t.Error("accepted with a full queue")
	}
	if n := p.crew.workers.Load(); n != workers {
		t.Errorf("%d workers, want %d", n, workers)
	}
	close(proceed)
	eventually(t, "every job has run and the workers are gone", func() bool { return ran.Load() == queue+workers && p.crew.workers.Load() == 0 })
	if len(p.queue) != 0 {
		t.Errorf("%d jobs are left", len(p.queue))
	}
}

// TestPoolForgetsNobody submits from many goroutines, so that workers end and are
// wanted again all the time: each accepted job runs once, and never more than the
// allowed number at a time.
func TestPoolForgetsNobody(t *testing.T) {
	const submitters, each, workers = 8, 2000, 3
	p := newTestPool(4, workers)
	var accepted, ran, now, most atomic.Int64
	var wg sync.WaitGroup
	for range submitters {
		wg.Go(func() {
			for range each {
				if p.submit(job{run: func() {
					n := now.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					now.Add(-1)
					ran.Add(1)
				}}) {
					accepted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "every accepted job has run", func() bool { return ran.Load() == accepted.Load() && p.crew.workers.Load() == 0 })
	if accepted.Load() == 0 || most.Load() > workers {
		t.Errorf("%d jobs ran, %d at a time, want at most %d", accepted.Load(), most.Load(), workers)
	}
}

// TestPoolOneByOne submits each job the moment the last one has run: a worker that
// is about to end must not leave it in the queue.
func TestPoolOneByOne(t *testing.T) {
	const jobs = 20_000
	p := newTestPool(1, 1)
	var ran atomic.Int64
	end := time.Now().Add(patience)
	for i := range int64(jobs) {
		for !p.submit(job{run: func() { ran.Add(1) }}) {
			runtime.Gosched()
		}
		for spins := 1; ran.Load() == i; spins++ {
			if spins%1000 == 0 {
				runtime.Gosched()
			}
			if spins%1_000_000 == 0 && time.Now().After(end) {
				t.Fatalf("job %d stays in the queue, with %d workers", i, p.crew.workers.Load())
			}
		}
	}
}

func stat(ino uint64, size, nsec int64) *unix.Stat_t {
	return &unix.Stat_t{Dev: 1, Ino: ino, Size: size, Ctim: unix.Timespec{Nsec: nsec}}
}

func TestExecPairs(t *testing.T) {
	expected := stat(1, 2, 3)
	otherDev := *expected
	otherDev.Dev++
	for name, tc := range map[string]struct {
		tid  int
		st   *unix.Stat_t
		want bool
	}{
		"the same":       {7, expected, true},
		"another thread": {8, expected, false},
		"another file":   {7, stat(9, 2, 3), false},
		"another size":   {7, stat(1, 9, 3), false},
		"changed since":  {7, stat(1, 2, 9), false},
		"another device": {7, &otherDev, false},
	} {
		var e execPairs
		e.put(7, stateOf(expected))
		if got := e.take(tc.tid, tc.st); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
		if tc.tid == 7 && e.take(7, expected) {
			t.Errorf("%s: taken twice", name)
		}
	}
	var none execPairs
	if none.take(7, expected) {
		t.Error("taken although nobody put it")
	}
}

// TestExecPairsAreBounded: openers killed between their two events are forgotten
// some day, and never taken for another's.
func TestExecPairsAreBounded(t *testing.T) {
	var e execPairs
	for tid := range 10 * maxPairs {
		e.put(tid, stateOf(stat(uint64(tid), 0, 0)))
		if n := len(e.files); n > maxPairs || int(e.pending.Load()) != n {
			t.Fatalf("%d pairs are kept, %d are counted", n, e.pending.Load())
		}
	}
	if last := 10*maxPairs - 1; !e.take(last, stat(uint64(last), 0, 0)) {
		t.Error("the newest one is forgotten")
	}
}
