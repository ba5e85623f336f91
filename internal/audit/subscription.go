package audit

import (
	"context"
	"sync"
)

// A Subscription reads a log's records in order, at its own rate. One goroutine
// uses it; Close may come from any.
type Subscription struct {
	l    *Log
	done chan struct{} // closed by Close
	once sync.Once

	// Guarded by l.mu.
	pos  uint64 // sequence number of the next record to read
	lost uint64 // records overwritten before they were read, as far as noticed
}

// Subscribe starts reading at sequence number since, at the oldest kept record
// if since is 0, and at the next one to come if since is [FromNow]. A number
// that was never given out yet comes from before the numbering began anew: reading
// then starts at the oldest kept record too. What an earlier process has numbered is
// not kept: it counts as overwritten. The caller closes the subscription.
func (l *Log) Subscribe(since uint64) *Subscription {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.reader(since)
	l.subs[s] = struct{}{}
	return s
}

// reader returns a subscription that is not listed among the subscribers. The
// caller holds l.mu.
func (l *Log) reader(since uint64) *Subscription {
	s := &Subscription{l: l, done: make(chan struct{}), pos: since}
	switch {
	case since == FromNow:
		s.pos = l.next
	case since == 0 || since > l.next:
		s.pos = l.oldest()
	}
	return s
}

// Next returns the next record, waiting for one if need be, and how many
// records were overwritten between the last one returned and this one. Its
// error is ctx's, or [ErrClosed] once the log or the subscription is closed and
// everything was read. The record must not be changed.
func (s *Subscription) Next(ctx context.Context) (rec Record, lost uint64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, 0, err
		}
		rec, lost, wake, err := s.take()
		if wake == nil {
			return rec, lost, err
		}
		select {
		case <-wake:
		case <-s.done:
		case <-ctx.Done():
		}
	}
}

// take returns the next record, or the channel that tells of it.
func (s *Subscription) take() (rec Record, lost uint64, wake <-chan struct{}, err error) {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case s.isClosed():
		return Record{}, 0, nil, ErrClosed
	case s.unread() > 0:
		lost = s.overwritten()
		s.lost += lost
		s.pos += lost + 1
		return l.ring[(s.pos-1)%uint64(len(l.ring))], lost, nil, nil
	case l.closed:
		return Record{}, 0, nil, ErrClosed
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return Record{}, 0, l.wake, nil
}

// overwritten returns how many unread records are gone. The caller holds l.mu.
func (s *Subscription) overwritten() uint64 {
	if oldest := s.l.oldest(); s.pos < oldest {
		return oldest - s.pos
	}
	return 0
}

// allLost returns every record this subscription was too slow for, those it
// has not noticed yet included. The caller holds l.mu.
func (s *Subscription) allLost() uint64 { return s.lost + s.overwritten() }

// Behind returns how many records were appended and not read yet, those already
// overwritten included; but 0 while none is kept, since Next tells of overwritten
// ones with the next record. While it is above 0, Next does not wait.
func (s *Subscription) Behind() uint64 {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.unread()
}

// unread is Behind. The caller holds l.mu.
func (s *Subscription) unread() uint64 {
	if s.l.next == s.l.first {
		return 0 // what is overwritten was an earlier process's
	}
	return s.l.next - s.pos
}

func (s *Subscription) isClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Close ends the subscription; a waiting Next returns [ErrClosed].
func (s *Subscription) Close() {
	s.once.Do(func() {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		close(s.done)
		s.l.lostToSubs += s.allLost()
		delete(s.l.subs, s)
	})
}
