package scannertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// A Script decides for a [Fake]. Its context ends with the scan's own and when
// the fake is closed; gen is the fake's generation when the scan began.
type Script func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict

// A Fake is a scanner that does what its script says. Make one with [NewFake].
type Fake struct {
	script Script
	life   context.Context // ends with Close
	end    context.CancelFunc
	calls  atomic.Int64

	mu     sync.Mutex // guards what follows
	gen    scanner.Generation
	health error
}

var errFakeClosed = fmt.Errorf("%w: the fake scanner is closed", scanner.ErrUnavailable)

// NewFake returns a healthy fake of generation gen that decides by script.
func NewFake(gen scanner.Generation, script Script) *Fake {
	life, end := context.WithCancel(context.Background())
	return &Fake{script: script, life: life, end: end, gen: gen}
}

// Scan runs the script, unless ctx is done or the fake is closed.
func (s *Fake) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	s.calls.Add(1)
	if err := ctx.Err(); err != nil {
		return scanner.ErrorVerdict(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // The fake's life is no part of its caller's.
	if s.life.Err() != nil {
		return scanner.ErrorVerdict(errFakeClosed)
	}
	gen := s.Generation()
	v := s.script(ctx, f, gen)
	if s.life.Err() != nil {
		return scanner.ErrorVerdict(errFakeClosed)
	}
	if gen != s.Generation() {
		v.Generation, v.Mark = "", false
	}
	return v
}

// Generation returns what [NewFake] or the last [Fake.SetGeneration] said.
func (s *Fake) Generation() scanner.Generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

// Health returns what the last [Fake.SetHealth] said.
func (s *Fake) Health(context.Context) error {
	if s.life.Err() != nil {
		return errFakeClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// Close ends the scans under way.
func (s *Fake) Close() error {
	s.end()
	return nil
}

// SetGeneration makes the fake's knowledge change to gen.
func (s *Fake) SetGeneration(gen scanner.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen = gen
}

// SetHealth makes Health return err.
func (s *Fake) SetHealth(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = err
}

// Calls returns how many scans were begun.
func (s *Fake) Calls() int { return int(s.calls.Load()) }

// Contains is the script of a small real scanner: a file is malicious, as
// signature, if needle occurs anywhere in it, and clean otherwise.
func Contains(needle, signature string) Script {
	return func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		content, err := readAll(ctx, f.FD)
		switch {
		case err != nil:
			return scanner.ErrorVerdict(err)
		case bytes.Contains(content, []byte(needle)):
			return scanner.MaliciousVerdict(signature, gen)
		default:
			return scanner.CleanVerdict(gen)
		}
	}
}

// Hang is a script that waits until its context is done. It sends on started,
// unless that is nil, when a scan has begun.
func Hang(started chan<- struct{}) Script {
	return func(ctx context.Context, _ *scanner.File, _ scanner.Generation) scanner.Verdict {
		if started != nil {
			select {
			case started <- struct{}{}:
			case <-ctx.Done():
			}
		}
		<-ctx.Done()
		return scanner.ErrorVerdict(ctx.Err())
	}
}

// Always returns a scanner that gives v for every file and knows it at once,
// without reading and without allocating. v must satisfy [CheckVerdict].
func Always(v scanner.Verdict) scanner.Instant { return &always{verdict: v} }

type always struct {
	verdict scanner.Verdict
	closed  atomic.Bool
}

var errAlwaysClosed = fmt.Errorf("%w: the scanner is closed", scanner.ErrUnavailable)

func (s *always) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	if err := ctx.Err(); err != nil {
		return scanner.ErrorVerdict(err)
	}
	if v, known := s.ScanInstant(f); known {
		return v
	}
	return scanner.ErrorVerdict(errAlwaysClosed)
}

func (s *always) ScanInstant(*scanner.File) (scanner.Verdict, bool) {
	return s.verdict, !s.closed.Load()
}

func (s *always) Generation() scanner.Generation { return s.verdict.Generation }

func (s *always) Health(context.Context) error {
	if s.closed.Load() {
		return errAlwaysClosed
	}
	return nil
}

func (s *always) Close() error {
	s.closed.Store(true)
	return nil
}

// readAll reads the whole file behind fd without moving its offset.
func readAll(ctx context.Context, fd int) ([]byte, error) {
	var content []byte
	chunk := make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := retry(func() (int, error) { return unix.Pread(fd, chunk, int64(len(content))) })
		if err != nil {
			return nil, fmt.Errorf("%w: pread: %w", scanner.ErrRead, err)
		}
		if n == 0 {
			return content, nil
		}
		content = append(content, chunk[:n]...)
	}
}

// CheckVerdict returns what is wrong with v by the rules that stand on the
// fields of [scanner.Verdict], or nil.
func CheckVerdict(v scanner.Verdict) error {
	var wrong []error
	rule := func(ok bool, what string) {
		if !ok {
			wrong = append(wrong, fmt.Errorf("%s: %+v", what, v))
		}
	}
	rule(v.Outcome <= scanner.Unscannable, "outcome is none of the four")
	rule((v.Signature != "") == (v.Outcome == scanner.Malicious), "a signature is set exactly when malicious")
	rule((v.Reason != "") == (v.Outcome == scanner.Unscannable), "a reason is set exactly when unscannable")
	rule((v.Err != nil) == (v.Outcome == scanner.Error), "an error is set exactly when the outcome is error")
	rule(!v.Mark || v.Outcome == scanner.Clean || v.Outcome == scanner.Malicious, "only clean and malicious may be marked")
	rule(!v.Mark || v.Generation != "", "a mark needs a generation")
	rule(knownReason(v.Reason), "the reason is not one of the closed set")
	return errors.Join(wrong...)
}

func knownReason(r scanner.Reason) bool {
	switch r {
	case "", scanner.ReasonTooLarge, scanner.ReasonLimits, scanner.ReasonEncrypted, scanner.ReasonFormat:
		return true
	}
	return false
}
