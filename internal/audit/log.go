package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
)

const (
	// DefaultKeep is how many records stay in memory unless configured otherwise.
	DefaultKeep = 4096
	// DefaultMaxSize is the size in bytes at which the record file is rotated.
	DefaultMaxSize = 100 << 20
	// DefaultKeepFiles is how many rotated record files are kept.
	DefaultKeepFiles = 5
	// FromNow subscribes to the records after this moment only.
	FromNow = math.MaxUint64
)

// ErrClosed says that the log or the subscription was closed and that nothing
// is left to read.
var ErrClosed = errors.New("records: closed")

// Options configures a [Log]. Zero numbers stand for the defaults.
type Options struct {
	Keep      int    // records kept in memory for subscribers
	File      string // absolute path of the record file; "" means none
	MaxSize   int64  // bytes after which the file is rotated, rounded up to MiB
	KeepFiles int    // rotated files kept
	// Tally is the path of a file on tmpfs in which records are counted, so that
	// those lost with a killed process are known to the next, and sequence numbers
	// go on; "" means none.
	Tally  string
	Logger *slog.Logger // for trouble with the files; nil discards
}

// A Log takes every record and hands it to whoever wants it. The newest records
// are kept in a ring; each subscriber, the file's writer included, reads the
// ring at its own rate and learns how many records were overwritten before it
// came to them.
//
// Lock order: a writer's lock, then the log's. Neither is held across a system
// call, a channel operation that could wait, or a call out of the package.
type Log struct {
	writer *writer       // nil without a file
	stop   chan struct{} // closed by Close

	lostBefore uint64 // with processes before this one

	mu         sync.Mutex
	tally      *tally // nil without one, and once closed
	ring       []Record
	first      uint64        // sequence number of this process's first record
	next       uint64        // sequence number of the next record
	wake       chan struct{} // closed by the next Append; nil while nobody waits
	closed     bool
	subs       map[*Subscription]struct{} // without the file's writer
	lostToSubs uint64                     // of closed subscriptions
}

// Status is the log's own account of itself.
type Status struct {
	Written     uint64 // to the file
	Pending     uint64 // in memory, not yet in the file
	Lost        uint64 // never reached the file: overwritten before, or not writable
	Error       string // why the file cannot be written now; "" if it can
	File        string
	Subscribers int    // without the file
	LostToSubs  uint64 // records that subscribers were too slow for
	// LostAtCrash counts records that were appended by processes before this one
	// and had not reached the file when these ended, since the numbering began. A
	// process that was killed while it wrote may have one counted that is in the
	// file. Without a file a record counts as arrived once it is appended.
	LostAtCrash uint64
}

// NewLog starts a log. It fails if the record file is not usable: a path that
// is not absolute, a directory that cannot be made, something other than a
// regular file, no permission. A full disk is not an error, since protection
// must start anyway: it shows in the status. Neither is a tally that cannot be
// kept, which is logged. The caller closes the log.
func NewLog(o Options) (*Log, error) {
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		stop: make(chan struct{}),
		ring: make([]Record, o.Keep),
		subs: make(map[*Subscription]struct{}),
	}
	var f *recordFile
	if o.File != "" {
		var err error
		if f, err = openRecordFile(o.File, o.MaxSize, o.KeepFiles); err != nil {
			return nil, fmt.Errorf("record file: %w", err)
		}
	}
	l.countIn(o.Tally, o.Logger)
	if f != nil {
		l.writer = newWriter(l, f, o.File, o.Logger)
		go l.writer.run()
	}
	return l, nil
}

// countIn makes the log go on where the tally at path says that the last
// process ended. A tally that cannot be kept costs only the count.
func (l *Log) countIn(path string, logger *slog.Logger) {
	if path != "" {
		t, err := openTally(path, logger)
		if err != nil {
			logger.Warn("records lost with a killed agent will not be counted, and are numbered from 1", "tally", path, "error", err)
		} else {
			l.tally, l.lostBefore = t, t.lost()
		}
	}
	l.first = l.tally.last() + 1
	l.next = l.first
}

// Announce says that an event is about to be answered, whose record will come with
// [Log.AppendAnnounced]. If the process ends in between, the record is counted as lost.
func (l *Log) Announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tally.announce()
}

// AppendAnnounced is Append for the record of an event that was announced.
func (l *Log) AppendAnnounced(r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.append(r)
	l.tally.keepPromise()
}

// Append takes a record and gives it the next sequence number. It never waits
// for a reader, the disk or memory and cannot fail: what does not fit
// overwrites the oldest. The caller must not change r.Scanners afterwards.
func (l *Log) Append(r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.append(r)
}

// append is Append for callers that hold l.mu.
func (l *Log) append(r Record) {
	r.Seq = l.next
	// Counted first: a process that is killed in between has lost it.
	l.tally.append(r.Seq)
	if l.writer == nil {
		l.tally.settle(1) // there is no file that it could miss
	}
	l.ring[r.Seq%uint64(len(l.ring))] = r
	l.next++
	l.wakeAll()
}

// wakeAll wakes everyone waiting for a record. The caller holds l.mu.
func (l *Log) wakeAll() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// oldest returns the lowest sequence number still kept, or that of the next
// record if there is none. The caller holds l.mu.
func (l *Log) oldest() uint64 {
	if keep := uint64(len(l.ring)); l.next-l.first > keep {
		return l.next - keep
	}
	return l.first
}

// Status returns the log's numbers now.
func (l *Log) Status() Status {
	var s Status
	if l.writer != nil {
		l.writer.addStatus(&s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.LostAtCrash = l.lostBefore
	s.Subscribers, s.LostToSubs = len(l.subs), l.lostToSubs
	for sub := range l.subs {
		s.LostToSubs += sub.allLost()
	}
	return s
}

// Close ends every subscription once it has read what is there, and waits until
// the file's writer has written what is pending or ctx ends. The error says how
// many records did not reach the file. Records appended after Close stay in
// memory only. What ctx did not wait for is lost with the process, and counted by
// the next.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.stop)
		l.wakeAll()
	}
	l.mu.Unlock()
	if l.writer == nil {
		return l.closeTally()
	}
	if err := l.writer.wait(ctx); err != nil {
		return errors.Join(err, l.closeTally())
	}
	return l.closeTally()
}

// closeTally ends the count, unless the writer still counts.
func (l *Log) closeTally() error {
	if l.writer != nil && !l.writer.ended() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tally
	if t == nil {
		return nil
	}
	l.tally = nil
	return t.close()
}
