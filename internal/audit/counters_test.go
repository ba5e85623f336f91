package audit

import (
	"maps"
	"sync"
	"testing"
)

func TestCountersSnapshot(t *testing.T) {
	var c Counters
	c.Add(false, ReasonClean)
	c.Add(false, ReasonClean)
	c.Add(false, ReasonTimeout)
	c.Add(true, ReasonTimeout)
	c.Add(true, ReasonMalicious)
	c.Add(false, NumReasons) // no reason at all: an error
	got := c.Snapshot()
	want := map[string]uint64{"clean": 2, "timeout": 2, "malicious": 1, "error": 1}
	if got.Allowed != 4 || got.Denied != 2 || got.Unscanned != 2 || !maps.Equal(got.Reasons, want) {
		t.Errorf("Snapshot() = %+v, want 4 allowed, 2 denied, 2 unscanned and %v", got, want)
	}
	var sum Counts
	got.AddTo(&sum)
	got.AddTo(&sum)
	if sum.Allowed != 8 || sum.Denied != 4 || sum.Unscanned != 4 || sum.Reasons["clean"] != 4 {
		t.Errorf("twice the same counts sum up to %+v", sum)
	}
	if got.Reasons["clean"] != 2 {
		t.Error("AddTo changed its source")
	}
}

func TestCountersConcurrently(t *testing.T) {
	const goroutines, each = 8, 1000
	var c Counters
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				c.Add(i%2 == 0, Reason(i%int(NumReasons)))
				c.Snapshot()
			}
		})
	}
	wg.Wait()
	s := c.Snapshot()
	var byReason uint64
	for _, n := range s.Reasons {
		byReason += n
	}
	if s.Allowed+s.Denied != goroutines*each || byReason != goroutines*each {
		t.Errorf("counted %d answers and %d reasons, want %d", s.Allowed+s.Denied, byReason, goroutines*each)
	}
}

func TestCountersAddDoesNotAllocate(t *testing.T) {
	var c Counters
	if n := testing.AllocsPerRun(1000, func() { c.Add(true, ReasonMalicious) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}

func BenchmarkCountersAdd(b *testing.B) {
	var c Counters
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Add(false, ReasonClean)
		}
	})
}
