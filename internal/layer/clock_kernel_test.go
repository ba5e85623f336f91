package layer

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKernelClockSet: a clock that was set is noticed by whoever asks next, before
// the watch has had time to. Setting it to what it is moves nothing else.
func TestKernelClockSet(t *testing.T) {
	c, err := NewClock()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := c.Sets(); n != 0 {
		t.Fatalf("set %d times before anybody did", n)
	}
	for i := range 3 {
		before := c.Sets()
		now := unix.NsecToTimeval(time.Now().UnixNano())
		if err := unix.Settimeofday(&now); err != nil {
			t.Fatal(err)
		}
		if c.Sets() == before {
			t.Errorf("%d: the set clock was not noticed", i)
		}
		end := time.Now().Add(10 * time.Second)
		for c.sets.Load() == before && time.Now().Before(end) {
			time.Sleep(time.Millisecond) //nolint:forbidigo // the watch has nothing else to wait on
		}
		if got := c.Sets(); got != before+1 {
			t.Errorf("%d: counted %d, want %d", i, got, before+1)
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.Sets() }); n != 0 {
		t.Errorf("%v allocations a question", n)
	}
}

func BenchmarkClockSets(b *testing.B) {
	c, err := NewClock()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		c.Sets()
	}
}
