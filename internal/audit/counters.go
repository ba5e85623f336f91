package audit

import "sync/atomic"

// Counters counts answers by decision and reason. The zero value is ready; it
// is safe for any number of goroutines, and must not be copied.
type Counters struct {
	answers [2][NumReasons]atomic.Uint64 // indexed by allowed, denied
}

const (
	allowed = iota
	denied
)

// Add counts one answer, without a lock or an allocation. A value that is no
// reason counts as [ReasonError]: nothing here may panic in the answering path.
func (c *Counters) Add(deny bool, r Reason) {
	if r >= NumReasons {
		r = ReasonError
	}
	if deny {
		c.answers[denied][r].Add(1)
		return
	}
	c.answers[allowed][r].Add(1)
}

// AddMany counts n answers of a kind at once.
func (c *Counters) AddMany(deny bool, r Reason, n uint64) {
	if deny {
		c.answers[denied][r].Add(n)
		return
	}
	c.answers[allowed][r].Add(n)
}

// Snapshot returns the numbers now. Answers given meanwhile may or may not be
// in it, but its totals always agree with its reasons.
func (c *Counters) Snapshot() Counts {
	s := Counts{Reasons: make(map[string]uint64)}
	for r := range NumReasons {
		a, d := c.answers[allowed][r].Load(), c.answers[denied][r].Load()
		s.Allowed += a
		s.Denied += d
		if r.Unscanned() {
			s.Unscanned += a
		}
		if a+d > 0 {
			s.Reasons[r.String()] = a + d
		}
	}
	return s
}

// Counts is what [Counters] held at one moment.
type Counts struct {
	Allowed   uint64            // answers
	Denied    uint64            // answers
	Unscanned uint64            // allows of something no scanner called clean
	Reasons   map[string]uint64 // answers by reason, non-zero only
}

// AddTo adds these counts to a sum, such as a tenant's over its containers.
func (s Counts) AddTo(sum *Counts) {
	sum.Allowed += s.Allowed
	sum.Denied += s.Denied
	sum.Unscanned += s.Unscanned
	if sum.Reasons == nil {
		sum.Reasons = make(map[string]uint64, len(s.Reasons))
	}
	for reason, n := range s.Reasons {
		sum.Reasons[reason] += n
	}
}
