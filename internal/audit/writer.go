package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// retryEvery is the pause before a record that could not be written is tried
	// again; meanwhile its successors wait in the ring.
	retryEvery = time.Second
	// reportEvery is the least time between two log messages about the same trouble.
	reportEvery = time.Minute
	// maxLine bounds one line of the file in bytes. It is far above two paths of
	// PATH_MAX with every byte escaped; a longer record is dropped and counted.
	maxLine = 512 << 10
)

var errLineTooLong = errors.New("record is too long for the record file")

// A writer is the subscriber that writes the record file. It holds on to a
// record until it is written, so that a disk that was full for a while costs
// nothing but what the ring could not hold meanwhile.
type writer struct {
	out    io.WriteCloser // takes whole lines
	sub    *Subscription
	tally  *tally // the log's, open as long as run goes on
	name   string
	retry  time.Duration
	logger *slog.Logger
	report limiter
	stop   <-chan struct{} // closed when the log is
	done   chan struct{}   // closed when run has returned

	mu      sync.Mutex
	written uint64
	dropped uint64 // given up by the writer itself
	inHand  uint64 // 1 while a record is being written
	err     error  // of the last attempt
}

// newWriter returns the writer of l's records to out; the caller starts its run.
func newWriter(l *Log, out io.WriteCloser, name string, logger *slog.Logger) *writer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &writer{
		out: out, sub: l.reader(0), tally: l.tally, name: name, retry: retryEvery, logger: logger,
		report: limiter{every: reportEvery}, stop: l.stop, done: make(chan struct{}),
	}
}

// run writes until the log is closed and everything was tried.
func (w *writer) run() {
	defer close(w.done)
	var line bytes.Buffer
	for {
		rec, lost, err := w.sub.Next(context.Background())
		if err != nil {
			break
		}
		w.tally.settle(lost)
		line.Reset()
		w.write(&rec, &line)
	}
	if err := w.out.Close(); err != nil {
		w.failed(err)
	}
}

// write brings one record to the file, however long it takes; after the log is
// closed it tries once more.
func (w *writer) write(rec *Record, line *bytes.Buffer) {
	w.begin()
	err := rec.AppendLine(line)
	if err == nil && line.Len() > maxLine {
		err = fmt.Errorf("%w: %d bytes", errLineTooLong, line.Len())
	}
	if err != nil {
		w.end(false)
		w.failed(err)
		return
	}
	for {
		last := w.stopping()
		_, err := w.out.Write(line.Bytes())
		if err == nil {
			w.end(true)
			return
		}
		w.failed(err)
		if last {
			w.end(false)
			return
		}
		w.pause()
	}
}

func (w *writer) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inHand = 1
}

// end accounts for the record in hand.
func (w *writer) end(written bool) {
	w.tally.settle(1)
	w.mu.Lock()
	w.inHand = 0
	if !written {
		w.dropped++
		w.mu.Unlock()
		return
	}
	w.written++
	recovered := w.err != nil
	w.err = nil
	w.mu.Unlock()
	if recovered {
		w.logger.Info("record file is being written again", "file", w.name)
	}
}

// failed notes why a record could not be written and says so now and then.
func (w *writer) failed(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	if w.report.ready(time.Now()) {
		var s Status
		w.addStatus(&s)
		w.logger.Error("record file cannot be written; answers are not affected",
			"file", w.name, "error", err, "pending", s.Pending, "lost", s.Lost,
			"remedy", "make room on its file system or set records.file to another place")
	}
}

// pause waits before the next attempt, less if the log is closed.
func (w *writer) pause() {
	t := time.NewTimer(w.retry)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.stop:
	}
}

// ended reports whether run has returned.
func (w *writer) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

func (w *writer) stopping() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// addStatus fills in the file's part of a status.
func (w *writer) addStatus(s *Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.sub.l
	l.mu.Lock()
	defer l.mu.Unlock()
	s.File, s.Written = w.name, w.written
	s.Lost = w.dropped + w.sub.allLost()
	s.Pending = w.inHand + l.next - w.sub.pos - w.sub.overwritten()
	if w.err != nil {
		s.Error = w.err.Error()
	}
	if w.ended() { // nobody will write these any more
		s.Lost, s.Pending = s.Lost+s.Pending, 0
	}
}

// wait waits for run to end.
func (w *writer) wait(ctx context.Context) error {
	var s Status
	select {
	case <-w.done:
	case <-ctx.Done():
		w.addStatus(&s)
		return fmt.Errorf("record file %s: %d records not written yet: %w", w.name, s.Pending, ctx.Err())
	}
	w.addStatus(&s)
	switch {
	case s.Error != "":
		return fmt.Errorf("record file %s: %d records never reached it: %s", w.name, s.Lost, s.Error)
	case s.Lost > 0:
		return fmt.Errorf("record file %s: %d records came faster than it could be written", w.name, s.Lost)
	default:
		return nil
	}
}

// A limiter lets one message through and then at most one per period.
type limiter struct {
	every time.Duration
	last  time.Time
}

func (l *limiter) ready(now time.Time) bool {
	if !l.last.IsZero() && now.Sub(l.last) < l.every {
		return false
	}
	l.last = now
	return true
}
