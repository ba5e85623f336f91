package verdict

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/assay-project/assay/scanner"
)

// A Class separates openers that must not wait for each other's scan, although
// they want the same file: those of different tenants (one's full queue would
// delay the other) and of different policies (one's scanners say nothing about
// the other's wishes). The caller numbers what it wants kept apart.
type Class uint64

// A flightKey names what is being scanned for whom.
type flightKey struct {
	scope Scope
	key   FileKey
	class Class
}

// A flight is a scan under way with those who wait for it. Its state machine:
//
//	         join             join, leave
//	(none) -------> owned <----------------+
//	                 | | |                 |
//	       complete  | | | hand over, with |  take, join
//	  settled <------+ | | waiters         |
//	                   | +-----------> orphaned
//	          disperse |                   | leave of the last waiter
//	  dissolved <------+-------------------+
//	    (also: hand over, without waiters)
//
// State and number of waiters are one word, changed by compare-and-swap alone.
// settled and dissolved are final. An orphaned flight always has a waiter and,
// unless one is being taken out right now, a baton.
type flight struct {
	word   atomic.Uint64
	result scanner.Result // set by the owner before it settles the flight
	done   chan struct{}  // closed when the flight has become final
	baton  chan struct{}  // wakes one waiter to take an orphaned flight; holds one
}

// A flightState is what a flight is in.
type flightState uint8

const (
	owned     flightState = iota // somebody scans
	orphaned                     // the owner gave up; a waiter is to take over
	settled                      // the result is there
	dissolved                    // there will be no result: everybody scans for himself
)

// A flightEvent is what somebody wants to do with a flight.
type flightEvent uint8

const (
	evJoin     flightEvent = iota // a new opener
	evComplete                    // the owner has the result
	evHandOver                    // the owner gives up, somebody else should try
	evDisperse                    // the owner gives up, its result would be nobody else's
	evTake                        // a waiter takes over
	evLeave                       // a waiter gives up
)

// next is the state machine: the state and number of waiters after an event, or
// ok == false if the event does nothing in this state.
func next(st flightState, waiters uint32, ev flightEvent) (to flightState, n uint32, ok bool) {
	switch {
	case st == owned && ev == evJoin:
		return owned, waiters + 1, true
	case st == orphaned && (ev == evJoin || ev == evTake):
		// Whoever joins takes over himself; then the number of waiters stays.
		if ev == evTake {
			waiters--
		}
		return owned, waiters, true
	case st == owned && ev == evComplete:
		return settled, 0, true
	case st == owned && ev == evHandOver && waiters > 0:
		return orphaned, waiters, true
	case st == owned && (ev == evHandOver || ev == evDisperse):
		return dissolved, 0, true
	case st == owned && ev == evLeave && waiters > 0, st == orphaned && ev == evLeave && waiters > 1:
		return st, waiters - 1, true
	case st == orphaned && ev == evLeave:
		return dissolved, 0, true
	}
	return st, waiters, false
}

// apply makes an event happen. It returns the states before and after it; they
// are equal, and ok is false, if the event does nothing in that state.
func (f *flight) apply(ev flightEvent) (from, to flightState, ok bool) {
	for {
		word := f.word.Load()
		from := flightState(word >> 32)
		to, n, ok := next(from, uint32(word), ev)
		if !ok || f.word.CompareAndSwap(word, uint64(to)<<32|uint64(n)) {
			return from, to, ok
		}
	}
}

// flightShards is how many locks the flights have. A power of two.
const flightShards = 64

// flights are all scans under way.
type flights struct {
	shards                           [flightShards]flightShard
	started, joined, handed, gaveOff atomic.Uint64
}

type flightShard struct {
	mu  sync.Mutex
	all map[flightKey]*flight // guarded by mu
}

func (fs *flights) init() {
	for i := range fs.shards {
		fs.shards[i].all = make(map[flightKey]*flight)
	}
}

// FlightStats count what became of openers that found no verdict.
type FlightStats struct {
	Started    uint64 // scans begun by the first opener
	Joined     uint64 // openers that waited on another's scan
	HandedOver uint64 // owners that gave up and let a waiter try
	Dispersed  uint64 // scans whose result could not be shared
	Now        int    // scans under way
}

func (fs *flights) stats() FlightStats {
	st := FlightStats{
		Started: fs.started.Load(), Joined: fs.joined.Load(),
		HandedOver: fs.handed.Load(), Dispersed: fs.gaveOff.Load(),
	}
	for i := range fs.shards {
		fs.shards[i].mu.Lock()
		st.Now += len(fs.shards[i].all)
		fs.shards[i].mu.Unlock()
	}
	return st
}

// A Ticket is one opener's part in a scan. Its methods are for one goroutine at
// a time, but for HandOver, which others may call when the owner's scan does not
// come back: what the owner says later has no effect. An owner ends its part with exactly one of Complete, HandOver and
// Disperse, a waiter with Wait, each on every path: all others depend on it.
type Ticket struct {
	flights *flights
	shard   *flightShard
	key     flightKey
	flight  *flight
	owner   atomic.Bool
}

// Join says that somebody needs a scan of a file. The first becomes the owner,
// and should look the file up once more, because the scan before may just have
// ended; all others wait.
func (c *Cache) Join(id Scope, key FileKey, class Class) *Ticket {
	t := &Ticket{
		flights: &c.flights, shard: &c.flights.shards[c.hashKey(&key)%flightShards],
		key: flightKey{id, key, class},
	}
	t.shard.mu.Lock()
	defer t.shard.mu.Unlock()
	if f := t.shard.all[t.key]; f != nil {
		if from, _, ok := f.apply(evJoin); ok {
			t.flight = f
			t.owner.Store(from == orphaned)
			if from != orphaned {
				c.flights.joined.Add(1)
			}
			return t
		}
	}
	t.flight = &flight{done: make(chan struct{}), baton: make(chan struct{}, 1)} // owned by us
	t.owner.Store(true)
	t.shard.all[t.key] = t.flight
	c.flights.started.Add(1)
	return t
}

// Owner reports whether the ticket's holder is to scan.
func (t *Ticket) Owner() bool { return t.owner.Load() }

// Complete gives the result to all who wait. Call it after [Cache.Keep], and
// only with a result that holds for them as well: the file had one identity and
// no writer from before the scan until after it. The result is shared from here
// on and must not change. It reports whether the caller was the owner.
func (t *Ticket) Complete(r scanner.Result) bool {
	if !t.owner.Swap(false) {
		return false
	}
	t.flight.result = r
	return t.end(evComplete)
}

// HandOver gives up for a reason of the owner's own (its deadline, its container,
// its queue): one of those who wait becomes the owner. It reports whether the
// caller was the owner.
func (t *Ticket) HandOver() bool {
	if !t.owner.Swap(false) {
		return false
	}
	t.flights.handed.Add(1)
	return t.end(evHandOver)
}

// Disperse gives up because the result holds for nobody else (the file changed
// or has a writer): all who wait scan for themselves, at once. It reports
// whether the caller was the owner.
func (t *Ticket) Disperse() bool {
	if !t.owner.Swap(false) {
		return false
	}
	t.flights.gaveOff.Add(1)
	return t.end(evDisperse)
}

// end ends the part of somebody who was the owner until now.
func (t *Ticket) end(ev flightEvent) bool {
	_, to, ok := t.flight.apply(ev)
	if to == orphaned {
		t.flight.pass()
	} else {
		t.finish()
	}
	return ok
}

// pass wakes a waiter. A baton that is there already does as well: whoever takes
// it looks at the state afterwards.
func (f *flight) pass() {
	select {
	case f.baton <- struct{}{}:
	default:
	}
}

// finish is called once, by whoever made the flight final.
func (t *Ticket) finish() {
	t.shard.mu.Lock()
	if t.shard.all[t.key] == t.flight { // and not the one after it
		delete(t.shard.all, t.key)
	}
	t.shard.mu.Unlock()
	close(t.flight.done)
}

// An Ending says how a wait ended.
type Ending uint8

// The endings of a wait.
const (
	Shared Ending = iota // the owner's result is this opener's as well
	Owner                // the owner gave up, and the waiter is now the owner: look up, scan, end
	Alone                // there is no result to share: scan, and tell nobody
	Left                 // the context ended first
)

// Wait waits for the owner. For an owner it returns Owner at once.
func (t *Ticket) Wait(ctx context.Context) (scanner.Result, Ending) {
	for !t.owner.Load() {
		select {
		case <-t.flight.done:
			return t.landed()
		case <-t.flight.baton:
			_, _, ok := t.flight.apply(evTake)
			t.owner.Store(ok)
		case <-ctx.Done():
			return t.leave()
		}
	}
	return scanner.Result{}, Owner
}

// landed returns what a final flight has to say.
func (t *Ticket) landed() (scanner.Result, Ending) {
	if flightState(t.flight.word.Load()>>32) == settled {
		return t.flight.result, Shared
	}
	return scanner.Result{}, Alone
}

// leave ends a waiter's part early. A flight that became final meanwhile has
// something better to say.
func (t *Ticket) leave() (scanner.Result, Ending) {
	_, to, ok := t.flight.apply(evLeave)
	if !ok {
		<-t.flight.done // about to be closed by whoever made it final
		return t.landed()
	}
	if to == dissolved {
		t.finish()
	}
	return scanner.Result{}, Left
}
