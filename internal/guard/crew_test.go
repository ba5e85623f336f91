package guard

import (
	"testing"
	"time"
)

// stuckJob is a job that does not come back until it is released.
type stuckJob struct {
	started, proceed chan struct{}
	gaveUp           chan struct{}
}

func newStuckJob() *stuckJob {
	return &stuckJob{make(chan struct{}, 64), make(chan struct{}), make(chan struct{}, 64)}
}

func (s *stuckJob) job() job {
	return job{
		run:    func() { s.started <- struct{}{}; <-s.proceed },
		giveUp: func() { s.gaveUp <- struct{}{} },
	}
}

// fill makes all workers of a pool stuck.
func (s *stuckJob) fill(t *testing.T, p *pool) {
	t.Helper()
	for p.crew.workers.Load() < p.crew.max {
		if !p.submit(s.job()) {
			t.Fatal("refused")
		}
		receive(t, "a worker", s.started)
	}
}

// TestCrewWritesOff: the place of a job that does not come back goes to another, up
// to a bound; when it comes back after all, it is a worker less.
func TestCrewWritesOff(t *testing.T) {
	const queue, workers = 16, 2
	p := newTestPool(queue, workers)
	s := newStuckJob()
	s.fill(t, p)
	if n := p.crew.writeOff(time.Hour); n != 0 {
		t.Fatalf("%d workers were written off before their time", n)
	}
	waits := make(chan struct{})
	p.submit(job{run: func() { close(waits) }})
	for round := range crewFactor - 1 {
		if n := p.crew.writeOff(0); n != workers || int(p.crew.stuck.Load()) != (round+1)*workers {
			t.Fatalf("round %d: %d written off, %d are stuck", round, n, p.crew.stuck.Load())
		}
		for range workers {
			receive(t, "a job to be given up", s.gaveUp)
		}
		if round == 0 {
			p.staff()
			receive(t, "what was queued behind the stuck jobs", waits)
			eventually(t, "that worker is through", func() bool { return p.crew.workers.Load() == 0 })
		}
		s.fill(t, p)
	}
	if n := p.crew.writeOff(0); n != 0 || !p.crew.exhausted.Load() {
		t.Errorf("%d written off beyond the bound; exhausted: %v", n, p.crew.exhausted.Load())
	}
	close(s.proceed)
	eventually(t, "all are back", func() bool {
		return p.crew.stuck.Load() == 0 && p.crew.workers.Load() == 0 && !p.crew.exhausted.Load()
	})
	if n := len(p.crew.all); n != 0 {
		t.Errorf("%d workers are left on the list", n)
	}
	again := make(chan struct{})
	p.submit(job{run: func() { close(again) }})
	receive(t, "a job after all that", again)
	if len(s.gaveUp) != 0 {
		t.Errorf("%d jobs too many were given up", len(s.gaveUp))
	}
}

// TestCrewOneComesBack: an exhausted crew works again as soon as one of it is free.
func TestCrewOneComesBack(t *testing.T) {
	p := newTestPool(16, 1)
	s := newStuckJob()
	for range crewFactor - 1 {
		s.fill(t, p)
		p.crew.writeOff(0)
	}
	s.fill(t, p)
	p.crew.writeOff(0)
	if !p.crew.exhausted.Load() {
		t.Fatal("the crew is not exhausted")
	}
	s.proceed <- struct{}{} // whichever it is
	eventually(t, "the crew is not exhausted any more", func() bool { return !p.crew.exhausted.Load() })
	close(s.proceed)
}

// TestStalls: events that wait while nothing is finished are noticed, and not a busy
// pool.
func TestStalls(t *testing.T) {
	p := newTestPool(16, 1)
	s := newStuckJob()
	s.fill(t, p)
	now := time.Now()
	if p.stalls(now, time.Second) || p.stalls(now.Add(time.Hour), time.Second) {
		t.Error("stalled with an empty queue")
	}
	now = now.Add(time.Hour)
	p.submit(job{run: func() {}})
	if p.stalls(now.Add(time.Second/2), time.Second) {
		t.Error("stalled before its time")
	}
	if !p.stalls(now.Add(time.Minute), time.Second) {
		t.Error("not stalled although nothing was finished for a minute")
	}
	p.crew.done.Add(1)
	if p.stalls(now.Add(2*time.Minute), time.Second) {
		t.Error("stalled although a job was finished")
	}
	close(s.proceed)
}
