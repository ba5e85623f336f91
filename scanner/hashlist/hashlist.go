// Package hashlist is the scanner that needs no other process: it compares a
// file's digests with lists of known malware, and knows the EICAR test file.
//
// It owns: list formats, loading and reloading lists, the digests. It must not
// own what happens to a listed file; that is the tenant's policy, applied by
// whoever called Scan. Verdicts go back through package scanner.
//
// # Lists
//
// The extension chooses the format of a list:
//
//   - .hsb and .hdb are ClamAV's: digest:size:name, optionally followed by one or
//     two functionality levels, which are checked for form and otherwise ignored.
//     The size is in bytes, or * for any.
//   - Everything else is plain: a hexadecimal digest, optionally followed by white
//     space and a name, as sha256sum, sha1sum and md5sum write it.
//
// In both, the digest's length tells MD5, SHA-1 and SHA-256 apart, lines that
// begin with # and empty lines are skipped, and any other line is an error. The
// name becomes the signature of the verdict. An entry takes about 200 bytes
// of memory.
//
// # Reloading
//
// The patterns and the files behind them are looked at every [Options.Interval];
// a changed list replaces the loaded ones as a whole. A list that cannot be
// loaded changes nothing: the ones before it stay in force, and Health says what
// is wrong until it is mended.
//
// # Locks
//
// Scan takes none: it works on the snapshot that was current when it began.
// Scanner.mu is held by a reload while it does its I/O, and by nothing else that
// a scan or Generation needs.
package hashlist

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-project/assay/scanner"
)

// DefaultInterval is how often lists are looked at unless configured otherwise.
const DefaultInterval = 2 * time.Second

// Options configure a [Scanner].
type Options struct {
	// Files are the lists: absolute paths, or patterns of filepath.Glob. A path
	// without pattern characters must exist; a pattern may match nothing (yet).
	// With no Files at all only the EICAR test file is known.
	Files []string
	// Interval is the time between two looks at the lists; 0 means
	// [DefaultInterval], and less than 0 that only [Scanner.Reload] looks.
	Interval time.Duration
}

// A Scanner is a hash list scanner. It implements [scanner.Instant].
type Scanner struct {
	files    []string
	snapshot atomic.Pointer[snapshot]
	failed   atomic.Pointer[error] // why the last reload changed nothing; nil if it worked
	jobs     sync.Pool             // of *job
	closed   <-chan struct{}       // closed by end
	end      context.CancelFunc    // also ends a reload of the poller's
	poller   sync.WaitGroup        // the goroutine that reloads

	mu    sync.Mutex // serialises reloads; guards what follows
	tried []stamp    // what the last reload looked at
}

var errClosed = fmt.Errorf("%w: the hash list scanner is closed", scanner.ErrUnavailable)

// New loads the lists and keeps them loaded until Close. It fails if a list
// cannot be read, or, with a *[ParseError], if it has a bad line.
func New(o Options) (*Scanner, error) {
	interval := o.Interval
	if interval == 0 {
		interval = DefaultInterval
	}
	if interval < 0 {
		return start(o.Files, nil, func() {})
	}
	ticker := time.NewTicker(interval)
	return start(o.Files, ticker.C, ticker.Stop)
}

// start is New with a clock: lists are looked at for every tick, and stop is
// called when there need be no more of them.
func start(files []string, tick <-chan time.Time, stop func()) (*Scanner, error) {
	life, end := context.WithCancel(context.Background())
	s := &Scanner{files: files, jobs: sync.Pool{New: newJob}, closed: life.Done(), end: end}
	if err := s.Reload(life); err != nil {
		end()
		stop()
		return nil, err
	}
	s.poller.Go(func() {
		defer stop()
		s.poll(life, tick)
	})
	return s, nil
}

// poll reloads for every tick until the scanner is closed.
func (s *Scanner) poll(life context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-life.Done():
			return
		case <-tick:
			// The error is kept for Health, which is where people look.
			_ = s.Reload(life)
		}
	}
}

// Reload looks at the lists now and loads them if anything about them has
// changed. It returns nil if the lists in force are those that are on disk, or
// else what is wrong with those, as Health does from then on.
func (s *Scanner) Reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return errClosed
	}
	paths, err := expand(s.files)
	if err != nil {
		return s.note(err)
	}
	stamps := stampAll(paths)
	if s.tried != nil && slices.Equal(s.tried, stamps) {
		return s.lastFailure()
	}
	next, err := load(ctx, paths)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("hash lists: the reload was cut short, what is loaded stays: %w", ctx.Err())
	}
	s.tried = stamps
	if err != nil {
		return s.note(err)
	}
	s.snapshot.Store(next)
	s.failed.Store(nil)
	return nil
}

// note keeps err for Health and returns it.
func (s *Scanner) note(err error) error {
	s.failed.Store(&err)
	return err
}

func (s *Scanner) lastFailure() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Generation names the content of the lists in force.
func (s *Scanner) Generation() scanner.Generation { return s.snapshot.Load().generation }

// Health returns nil while the lists in force are those on disk, as far as the
// last look at them tells.
func (s *Scanner) Health(context.Context) error {
	if s.isClosed() {
		return errClosed
	}
	if err := s.lastFailure(); err != nil {
		return fmt.Errorf("hash lists: an older state stays in force: %w", err)
	}
	return nil
}

// Close ends reloading, and the scans under way with an Error verdict.
func (s *Scanner) Close() error {
	s.end()
	s.poller.Wait()
	return nil
}

func (s *Scanner) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// A ParseError is a line of a list that cannot be understood.
type ParseError struct {
	File    string
	Line    int // counted from 1
	Problem string
	Remedy  string
}

// Error returns file:line, the problem and the remedy.
func (e *ParseError) Error() string {
	return fmt.Sprintf("%s:%d: %s; %s", e.File, e.Line, e.Problem, e.Remedy)
}
