package scannertest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// brokenEnv names the defect that TestWithDefect builds into its scanner.
const brokenEnv = "SCANNERTEST_DEFECT"

// A defective scanner is a conforming one with a part replaced.
type defective struct {
	*scannertest.Fake
	scan    func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict
	instant func(*scanner.File) scanner.Verdict
	health  func() error
}

func (d *defective) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	if d.scan != nil {
		return d.scan(d.Fake, ctx, f)
	}
	return d.Fake.Scan(ctx, f)
}

func (d *defective) ScanInstant(f *scanner.File) (scanner.Verdict, bool) {
	if d.instant == nil {
		return scanner.Verdict{}, false
	}
	return d.instant(f), true
}

func (d *defective) Health(ctx context.Context) error {
	if d.health != nil {
		return d.health()
	}
	return d.Fake.Health(ctx)
}

// defects says, by name, what is broken and which check has to notice.
func defects() map[string]struct {
	noticed string
	defective
	change func(*testing.T, scanner.Scanner)
	hang   scannertest.Script
} {
	type scanFunc = func(*scannertest.Fake, context.Context, *scanner.File) scanner.Verdict
	after := func(spoil func(*scanner.File)) scanFunc {
		return func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			defer spoil(f)
			return s.Scan(ctx, f)
		}
	}
	change := func(alter func(*scanner.Verdict)) scanFunc {
		return func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			v := s.Scan(ctx, f)
			alter(&v)
			return v
		}
	}
	var busy atomic.Int32
	var sink atomic.Pointer[[]byte]
	type d = defective
	return map[string]struct {
		noticed string
		defective
		change func(*testing.T, scanner.Scanner)
		hang   scannertest.Script
	}{
		"none": {},
		"accuses everything": {noticed: "Clean", defective: d{scan: change(func(v *scanner.Verdict) {
			if v.Outcome == scanner.Clean {
				v.Outcome, v.Signature = scanner.Malicious, "Evil"
			}
		})}},
		"finds nothing": {noticed: "Malicious", defective: d{scan: change(func(v *scanner.Verdict) {
			if v.Outcome == scanner.Malicious {
				v.Outcome, v.Signature = scanner.Clean, ""
			}
		})}},
		"fails on empty": {noticed: "Empty", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			if f.Size == 0 {
				return scanner.ErrorVerdict(scanner.ErrRead)
			}
			return s.Scan(ctx, f)
		}}},
		"fails on big": {noticed: "Big", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			if f.Size == 32<<20 {
				return scanner.ErrorVerdict(scanner.ErrRead)
			}
			return s.Scan(ctx, f)
		}}},
		"trusts size": {noticed: "WrongSize", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			if f.Size <= 0 && ctx.Err() == nil {
				return scanner.CleanVerdict(s.Generation())
			}
			return s.Scan(ctx, f)
		}}},
		"accuses the truncated": {noticed: "Truncated", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			var st unix.Stat_t
			if v := s.Scan(ctx, f); unix.Fstat(f.FD, &st) != nil || f.Size != 1<<20 || st.Size == f.Size {
				return v
			}
			return scanner.MaliciousVerdict("Evil", "1")
		}}},
		"clean if unread": {noticed: "Unreadable", defective: d{scan: change(func(v *scanner.Verdict) {
			if v.Err != nil && strings.Contains(v.Err.Error(), "pread") {
				*v = scanner.CleanVerdict("1")
			}
		})}},
		"closes":  {noticed: "Borrowed", defective: d{scan: after(func(f *scanner.File) { _ = unix.Close(f.FD) })}},
		"seeks":   {noticed: "Borrowed", defective: d{scan: after(func(f *scanner.File) { _, _ = unix.Seek(f.FD, 0, 0) })}},
		"keeps":   {noticed: "Borrowed", defective: d{scan: after(func(f *scanner.File) { _, _ = unix.Dup(f.FD) })}},
		"unlocks": {noticed: "Borrowed", defective: d{scan: after(func(f *scanner.File) { _ = unix.SetNonblock(f.FD, true) })}},
		"opens":   {noticed: "ManyScans", defective: d{scan: after(func(*scanner.File) { _, _ = unix.Open("/dev/null", 0, 0) })}},
		"mixes": {noticed: "Concurrent", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			defer busy.Add(-1)
			if busy.Add(1) > 1 {
				return scanner.CleanVerdict("1")
			}
			<-time.After(time.Millisecond) // Room for the others.
			return s.Scan(ctx, f)
		}}},
		"ignores a done context": {noticed: "DoneContext", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			return s.Scan(context.WithoutCancel(ctx), f)
		}}},
		"forgives hanging": {noticed: "Hang", hang: func(ctx context.Context, _ *scanner.File, gen scanner.Generation) scanner.Verdict {
			<-ctx.Done()
			return scanner.CleanVerdict(gen)
		}},
		"forgives closing": {noticed: "CloseEndsScan", defective: d{scan: func(s *scannertest.Fake, ctx context.Context, f *scanner.File) scanner.Verdict {
			if v := s.Scan(ctx, f); ctx.Err() != nil || s.Health(ctx) == nil {
				return v
			}
			return scanner.CleanVerdict("1")
		}}},
		"invents a generation": {noticed: "Generation", defective: d{scan: change(func(v *scanner.Verdict) { v.Generation = "0" })}},
		"does not change":      {noticed: "Change", change: func(*testing.T, scanner.Scanner) {}},
		"marks an old generation": {noticed: "Change", defective: d{scan: change(func(v *scanner.Verdict) {
			v.Generation = "1"
		})}},
		"allocates at once": {noticed: "Instant", defective: d{instant: func(*scanner.File) scanner.Verdict {
			b := make([]byte, 100)
			sink.Store(&b)
			return scanner.CleanVerdict("1")
		}}},
		"contradicts itself": {noticed: "Instant", defective: d{instant: func(*scanner.File) scanner.Verdict {
			return scanner.MaliciousVerdict("Evil", "1")
		}}},
		"is ill":             {noticed: "Health", defective: d{health: func() error { return scanner.ErrUnavailable }}},
		"is well for ever":   {noticed: "Close", defective: d{health: func() error { return nil }}},
		"marks an error":     {noticed: "DoneContext", defective: d{scan: change(func(v *scanner.Verdict) { v.Mark = true })}},
		"leaves a goroutine": {noticed: "Clean", defective: d{scan: after(func(*scanner.File) { go func() { select {} }() })}},
	}
}

// TestWithDefect runs the suite on the defective scanner that the environment
// names. Without one it is the control: what the defects are built into conforms.
func TestWithDefect(t *testing.T) {
	name := os.Getenv(brokenEnv)
	if name == "" {
		name = "none"
	}
	defect, ok := defects()[name]
	if !ok {
		t.Fatalf("no defect %q", name)
	}
	build := func(script scannertest.Script) scanner.Scanner {
		d := defect.defective
		d.Fake = scannertest.NewFake("1", script)
		return &d
	}
	if defect.change == nil {
		defect.change = func(_ *testing.T, s scanner.Scanner) { s.(*defective).SetGeneration("2") } //nolint:errcheck // It is what New returns.
	}
	scannertest.Run(t, scannertest.Config{
		New:       func(*testing.T) scanner.Scanner { return build(scannertest.Contains("evil", "Test.Evil")) },
		Malicious: malicious(),
		Clean:     harmless(),
		Hang: func(t *testing.T) scannertest.Hung {
			t.Helper()
			if defect.hang != nil {
				return scannertest.Hung{Scanner: build(defect.hang), File: scannertest.FileOf(t, nil)}
			}
			started := make(chan struct{})
			return scannertest.Hung{Scanner: build(scannertest.Hang(started)), File: scannertest.FileOf(t, nil), Started: started}
		},
		Change: defect.change,
	})
}

// TestRunNotices runs TestWithDefect in a process of its own for each defect
// and wants the right check to fail.
func TestRunNotices(t *testing.T) {
	if os.Getenv(brokenEnv) != "" {
		t.Fatal("the tests of the suite run inside themselves")
	}
	for name, defect := range defects() {
		if name == "none" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWithDefect$/^"+defect.noticed+"$", "-test.v")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestWithDefect/"+defect.noticed) {
				t.Errorf("%s notices nothing: %v\n%s", defect.noticed, err, out)
			}
		})
	}
}
