// Package scannertest is the conformance suite that every scanner passes, and
// the scanners that tests of other packages use in place of a real one.
//
// It owns: what the comments of package scanner mean, said as checks; [Fake] and
// [Always]; files to lend ([FileOf]). It must not own what only one driver does:
// that is in the driver's own tests, which call [Run] first.
//
// [Run] counts descriptors and goroutines of the whole process: no other test may
// run in parallel with it.
package scannertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/assay-project/assay/scanner"
)

// A Sample is content that the scanner under test finds malicious.
type Sample struct {
	Content   []byte
	Signature string // must occur in the verdict's signature
}

// A Config describes the scanner under test.
type Config struct {
	// New returns a scanner that works, for the test t alone. Run closes it, at
	// times twice; neither may be an error.
	// What else New starts (a server, say) it ends by t.Cleanup.
	New func(t *testing.T) scanner.Scanner
	// Malicious is content that must be found. If there is none, what needs it
	// is left out.
	Malicious []Sample
	// Clean is content that must be called clean. If there is none, the scanner
	// may call anything malicious.
	Clean [][]byte
	// BigSize is the length in bytes of a file of zeros that must be clean or
	// unscannable; 0 means 32 MiB.
	BigSize int64

	// Hang is optional. It returns a scanner and a file whose scan lasts until
	// its context is done or the scanner is closed.
	Hang func(t *testing.T) Hung
	// Change is optional. It makes the knowledge of s change, and returns when
	// s.Generation tells the new one.
	Change func(t *testing.T, s scanner.Scanner)
}

// A Hung scan is one that does not end by itself.
type Hung struct {
	Scanner scanner.Scanner
	File    *scanner.File
	// Started is ready to receive once the scan is under way; nil if nobody can tell.
	Started <-chan struct{}
}

// patience is how long a scan may take to return although nothing holds it up.
// It only turns a hung test into a failed one.
const patience = 30 * time.Second

// settling is how long another goroutine, a test's own server for one, may take
// to close a descriptor after the scan has returned.
const settling = 3 * time.Second

// Run checks that the scanners of cfg.New do what package scanner promises.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	t.Run("Clean", cfg.checkClean)
	t.Run("Malicious", cfg.checkMalicious)
	t.Run("Empty", cfg.checkEmpty)
	t.Run("Big", cfg.checkBig)
	t.Run("WrongSize", cfg.checkWrongSize)
	t.Run("Truncated", cfg.checkTruncated)
	t.Run("Unreadable", cfg.checkUnreadable)
	t.Run("Borrowed", cfg.checkBorrowed)
	t.Run("ManyScans", cfg.checkManyScans)
	t.Run("Concurrent", cfg.checkConcurrent)
	t.Run("DoneContext", cfg.checkDoneContext)
	t.Run("Hang", cfg.checkHang)
	t.Run("CloseEndsScan", cfg.checkCloseEndsScan)
	t.Run("Generation", cfg.checkGeneration)
	t.Run("Change", cfg.checkChange)
	t.Run("Instant", cfg.checkInstant)
	t.Run("Health", cfg.checkHealth)
	t.Run("Close", cfg.checkClose)
}

// start returns a new scanner that is closed when the test ends, whereupon all
// that it had open must be gone.
func (cfg Config) start(t *testing.T) scanner.Scanner {
	t.Helper()
	expectNoLeaks(t)
	s := cfg.New(t)
	t.Cleanup(func() { closeScanner(t, s) })
	return s
}

func closeScanner(t *testing.T, s scanner.Scanner) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// scan scans f and checks the verdict's form.
func scan(ctx context.Context, t *testing.T, s scanner.Scanner, f *scanner.File) scanner.Verdict {
	t.Helper()
	return await(t, begin(ctx, s, f))
}

// begin starts a scan; await receives its verdict.
func begin(ctx context.Context, s scanner.Scanner, f *scanner.File) <-chan scanner.Verdict {
	got := make(chan scanner.Verdict, 1)
	go func() { got <- s.Scan(ctx, f) }()
	return got
}

func await(t *testing.T, got <-chan scanner.Verdict) scanner.Verdict {
	t.Helper()
	select {
	case v := <-got:
		if err := CheckVerdict(v); err != nil {
			t.Error(err)
		}
		return v
	case <-time.After(patience):
		t.Fatal("Scan does not return")
		return scanner.Verdict{}
	}
}

func wantClean(t *testing.T, v scanner.Verdict) {
	t.Helper()
	if v.Outcome != scanner.Clean {
		t.Errorf("clean content: got %v, %+v", v.Outcome, v)
	}
}

func wantMalicious(t *testing.T, v scanner.Verdict, sample Sample) {
	t.Helper()
	if v.Outcome != scanner.Malicious || !contains(v.Signature, sample.Signature) {
		t.Errorf("malicious content: got %v, %+v; want a signature with %q", v.Outcome, v, sample.Signature)
	}
}

// wantErr checks that v is an error that wraps target.
func wantErr(t *testing.T, v scanner.Verdict, target error) {
	t.Helper()
	if v.Outcome != scanner.Error || !errors.Is(v.Err, target) {
		t.Errorf("got %v, %+v; want an error that wraps %q", v.Outcome, v, target)
	}
}

// wantHarmless checks a verdict on content that is not malicious but that the
// scanner need not be able to judge.
func (cfg Config) wantHarmless(t *testing.T, v scanner.Verdict) {
	t.Helper()
	if v.Outcome == scanner.Malicious && len(cfg.Clean) > 0 {
		t.Errorf("found in content that has nothing to find: %+v", v)
	}
}
