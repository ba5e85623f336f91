package verdict

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/assay-project/assay/scanner"
)

// TestFlightTransitions holds the state machine against its table: every state,
// with none, one and several waiters, and every event.
func TestFlightTransitions(t *testing.T) {
	t.Parallel()
	type at struct {
		st flightState
		n  uint32
	}
	table := map[at]map[flightEvent]at{ // what is not in it does nothing
		{owned, 0}: {evJoin: {owned, 1}, evComplete: {settled, 0}, evHandOver: {dissolved, 0}, evDisperse: {dissolved, 0}},
		{owned, 1}: {evJoin: {owned, 2}, evComplete: {settled, 0}, evHandOver: {orphaned, 1}, evDisperse: {dissolved, 0}, evLeave: {owned, 0}},
		{owned, 2}: {evJoin: {owned, 3}, evComplete: {settled, 0}, evHandOver: {orphaned, 2}, evDisperse: {dissolved, 0}, evLeave: {owned, 1}},
		// An orphaned flight has a waiter.
		{orphaned, 1}:  {evJoin: {owned, 1}, evTake: {owned, 0}, evLeave: {dissolved, 0}},
		{orphaned, 2}:  {evJoin: {owned, 2}, evTake: {owned, 1}, evLeave: {orphaned, 1}},
		{settled, 0}:   {},
		{dissolved, 0}: {},
	}
	for from, events := range table {
		for ev := evJoin; ev <= evLeave; ev++ {
			want, does := events[ev]
			if !does {
				want = from
			}
			to, n, ok := next(from.st, from.n, ev)
			if (at{to, n}) != want || ok != does {
				t.Errorf("%v on event %d: %v with %d waiters, %v; want %v, %v", from, ev, to, n, ok, want, does)
			}
			var f flight
			f.word.Store(uint64(from.st)<<32 | uint64(from.n))
			before, after, ok := f.apply(ev)
			if before != from.st || after != want.st || ok != does || f.word.Load() != uint64(want.st)<<32|uint64(want.n) {
				t.Errorf("%v on event %d applied: %v to %v, %v", from, ev, before, after, ok)
			}
			if _, known := table[want]; does && !known && want.n < 3 {
				t.Errorf("%v on event %d leads to %v, which is not in the table", from, ev, want)
			}
		}
	}
}

var errGone = fmt.Errorf("the opener is gone")

// A waiting opener and how its wait ended.
type waiting struct {
	ticket *Ticket
	cancel context.CancelFunc
	ended  chan Ending
	result scanner.Result
}

func wait(t *testing.T, ticket *Ticket) *waiting {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &waiting{ticket: ticket, cancel: cancel, ended: make(chan Ending, 1)}
	go func() {
		defer cancel()
		r, how := ticket.Wait(ctx)
		w.result = r
		w.ended <- how
	}()
	return w
}

// ending returns how the wait ended, or -1 if it has not.
func (w *waiting) ending() int {
	synctest.Wait()
	select {
	case how := <-w.ended:
		return int(how)
	default:
		return -1
	}
}

func TestFlightEndings(t *testing.T) {
	t.Parallel()
	scope, key := LayerScope("l"), keyOf(1)
	found := scanner.Result{Verdict: scanner.MaliciousVerdict("Bad", "g")}
	run := func(name string, body func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := New(Options{})
				owner := c.Join(scope, key, 1)
				if !owner.Owner() {
					t.Fatal("the first is not the owner")
				}
				a, b := wait(t, c.Join(scope, key, 1)), wait(t, c.Join(scope, key, 1))
				if a.ending() != -1 || b.ending() != -1 {
					t.Fatal("the second or third did not wait")
				}
				body(t, c, owner, a, b)
				if n := c.flights.stats().Now; n != 0 {
					t.Errorf("%d flights left", n)
				}
			})
		})
	}
	both := func(t *testing.T, a, b *waiting, want Ending) {
		t.Helper()
		if x, y := a.ending(), b.ending(); x != int(want) || y != int(want) {
			t.Errorf("endings %d and %d, want %d", x, y, want)
		}
	}
	run("complete", func(t *testing.T, _ *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		if !owner.Complete(found) || owner.Complete(found) || owner.HandOver() || owner.Disperse() {
			t.Error("not completed exactly once")
		}
		both(t, a, b, Shared)
		if a.result.Verdict != found.Verdict || b.result.Verdict != found.Verdict {
			t.Error("not the owner's result")
		}
	})
	run("disperse", func(t *testing.T, _ *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		if !owner.Disperse() || owner.Disperse() {
			t.Error("not dispersed exactly once")
		}
		both(t, a, b, Alone)
	})
	run("a waiter cannot end it", func(t *testing.T, _ *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		if a.ticket.Complete(found) || a.ticket.HandOver() || a.ticket.Disperse() {
			t.Error("a waiter ended the flight")
		}
		owner.Complete(found)
		both(t, a, b, Shared)
	})
	run("hand over to a waiter", func(t *testing.T, _ *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		owner.HandOver()
		next, other := a, b
		switch x, y := a.ending(), b.ending(); {
		case x == -1 && y == int(Owner):
			next, other = b, a
		case x != int(Owner) || y != -1:
			t.Fatalf("endings %d and %d: want one new owner", x, y)
		}
		next.ticket.HandOver()
		if other.ending() != int(Owner) {
			t.Error("the last waiter did not take over")
		}
		other.ticket.HandOver()
	})
	run("hand over to one who joins", func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		a.cancel()
		a.ending()
		// Nobody can take the baton before the join: the state is set by hand.
		owner.owner.Store(false)
		owner.flight.apply(evHandOver)
		late := c.Join(scope, key, 1)
		owner.flight.pass() // the baton now comes too late, and must be ignored
		if !late.Owner() || b.ending() != -1 {
			t.Error("who joins an orphaned flight takes it")
		}
		late.Complete(found)
		if b.ending() != int(Shared) {
			t.Error("the waiter missed the result")
		}
	})
	run("waiters leave", func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		a.cancel()
		b.cancel()
		both(t, a, b, Left)
		if c.Join(scope, key, 1).Owner() {
			t.Error("the owner left with the waiters")
		}
		owner.Complete(found)
	})
	run("the last waiter leaves an orphan", func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		a.cancel()
		a.ending()
		owner.owner.Store(false)
		owner.flight.apply(evHandOver) // without a baton, so that b leaves
		b.cancel()
		if b.ending() != int(Left) {
			t.Error("b did not leave")
		}
		if again := c.Join(scope, key, 1); !again.Owner() || !again.Disperse() {
			t.Error("the file is stuck")
		}
	})
	run("classes do not wait for each other", func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		for _, other := range []*Ticket{c.Join(scope, key, 2), c.Join(ContainerScope("c"), key, 1), c.Join(scope, keyOf(2), 1)} {
			if !other.Owner() || !other.Complete(scanner.Result{}) {
				t.Error("waits for another's scan")
			}
		}
		owner.Disperse()
		both(t, a, b, Alone)
	})
	run("after the end comes a new flight", func(t *testing.T, c *Cache, owner *Ticket, a, b *waiting) {
		t.Helper()
		// The flight is final but still in the map.
		owner.owner.Store(false)
		owner.flight.apply(evDisperse)
		again := c.Join(scope, key, 1)
		if !again.Owner() || again.flight == owner.flight {
			t.Error("joined a flight that is over")
		}
		owner.finish() // takes out nothing but its own
		if c.Join(scope, key, 1).Owner() {
			t.Error("the new flight was taken out with the old one")
		}
		again.Complete(found)
		both(t, a, b, Alone)
	})
}

// TestOneScanForAll has many goroutines open many files at once, as the gate
// does: look up, join, look up again, scan, keep, complete. No file is scanned
// twice, and everybody gets its verdict.
func TestOneScanForAll(t *testing.T) {
	t.Parallel()
	const openers, files = 16, 300
	layer := LayerScope("l")
	c := acquired(Options{}, layer)
	s := c.Scanner("s", "")
	var scans [files]atomic.Int32
	truth := func(i uint64) Kept {
		if i%7 == 0 {
			return malicious(s, "g", fmt.Sprint("bad ", i))
		}
		return clean(s, "g")
	}
	open := func(ctx context.Context, i uint64) scanner.Verdict {
		if v, known := one(c, layer, keyOf(i), s, "g"); known {
			return v
		}
		ticket := c.Join(layer, keyOf(i), 1)
		if r, how := ticket.Wait(ctx); how == Shared {
			return r.Verdict
		} else if how != Owner {
			t.Errorf("ending %d", how)
		}
		if v, known := one(c, layer, keyOf(i), s, "g"); known {
			ticket.Complete(scanner.Result{Verdict: v})
			return v
		}
		scans[i].Add(1)
		c.Keep(layer, keyOf(i), 1, []Kept{truth(i)})
		ticket.Complete(scanner.Result{Verdict: truth(i).Verdict})
		return truth(i).Verdict
	}
	var wg sync.WaitGroup
	for range openers {
		wg.Go(func() {
			for i := range uint64(files) {
				if v := open(t.Context(), i); v != truth(i).Verdict {
					t.Errorf("file %d: %+v", i, v)
				}
			}
		})
	}
	wg.Wait()
	for i := range scans {
		if n := scans[i].Load(); n != 1 {
			t.Errorf("file %d was scanned %d times", i, n)
		}
	}
	if n := c.Stats().Flights.Now; n != 0 {
		t.Errorf("%d flights left", n)
	}
}

// TestFlightStorm ends flights in all ways at once. Every wait ends, there never
// are two owners, and nothing is left.
func TestFlightStorm(t *testing.T) {
	t.Parallel()
	const openers, rounds, files = 12, 2000, 3
	c := New(Options{})
	var scanning [files]atomic.Int32
	var wg sync.WaitGroup
	for n := range openers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			for range rounds {
				file := random.Uint64N(files)
				ctx, cancel := context.WithCancelCause(t.Context())
				if random.IntN(3) == 0 {
					go cancel(errGone)
				}
				ticket := c.Join(Scope{}, keyOf(file), 1)
				r, how := ticket.Wait(ctx)
				switch how {
				case Shared:
					if r.Verdict.Signature != fmt.Sprint(file) {
						t.Errorf("file %d: the result of another: %+v", file, r)
					}
				case Owner:
					if scanning[file].Add(1) != 1 {
						t.Errorf("file %d: two owners", file)
					}
					end := random.IntN(4)
					scanning[file].Add(-1)
					switch end {
					case 0:
						ticket.HandOver()
					case 1:
						ticket.Disperse()
					default:
						ticket.Complete(scanner.Result{Verdict: scanner.MaliciousVerdict(fmt.Sprint(file), "g")})
					}
				case Left:
					if ctx.Err() == nil {
						t.Error("left without a reason")
					}
				case Alone:
				}
				cancel(nil)
			}
		})
	}
	wg.Wait()
	if n := c.flights.stats().Now; n != 0 {
		t.Errorf("%d flights left", n)
	}
}
