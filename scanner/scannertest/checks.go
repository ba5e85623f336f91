package scannertest

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func (cfg Config) checkClean(t *testing.T) {
	s := cfg.start(t)
	for i, content := range cfg.Clean {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			wantClean(t, scan(t.Context(), t, s, FileOf(t, content)))
			onDisk, _ := TempFile(t, content)
			wantClean(t, scan(t.Context(), t, s, onDisk))
		})
	}
}

func (cfg Config) checkMalicious(t *testing.T) {
	s := cfg.start(t)
	for i, sample := range cfg.Malicious {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			wantMalicious(t, scan(t.Context(), t, s, FileOf(t, sample.Content)), sample)
			onDisk, _ := TempFile(t, sample.Content)
			wantMalicious(t, scan(t.Context(), t, s, onDisk), sample)
		})
	}
}

func (cfg Config) checkEmpty(t *testing.T) {
	v := scan(t.Context(), t, cfg.start(t), FileOf(t, nil))
	cfg.wantHarmless(t, v)
	if v.Outcome == scanner.Error {
		t.Errorf("an empty file is no error: %v", v.Err)
	}
}

func (cfg Config) checkBig(t *testing.T) {
	size := cfg.BigSize
	if size == 0 {
		size = 32 << 20
	}
	v := scan(t.Context(), t, cfg.start(t), SparseFile(t, size))
	cfg.wantHarmless(t, v)
	if v.Outcome == scanner.Error {
		t.Errorf("a file of %d zeros is clean or unscannable, never an error: %v", size, v.Err)
	}
}

// checkWrongSize lends files whose Size is not the length of what is there: it
// was read before the file grew or shrank.
func (cfg Config) checkWrongSize(t *testing.T) {
	s := cfg.start(t)
	for _, size := range []func(int64) int64{
		func(int64) int64 { return math.MinInt64 },
		func(int64) int64 { return -1 },
		func(int64) int64 { return 0 },
		func(n int64) int64 { return n / 2 },
		func(n int64) int64 { return n - 1 },
		func(n int64) int64 { return n + 1 },
		func(int64) int64 { return 1 << 40 },
		func(int64) int64 { return math.MaxInt64 },
	} {
		for _, content := range cfg.Clean {
			f := FileOf(t, content)
			f.Size = size(f.Size)
			cfg.wantHarmless(t, scan(t.Context(), t, s, f))
		}
		for _, sample := range cfg.Malicious {
			f := FileOf(t, sample.Content)
			f.Size = size(f.Size)
			if v := scan(t.Context(), t, s, f); v.Outcome == scanner.Clean {
				t.Errorf("malicious file of %d bytes, said to have %d: clean", len(sample.Content), f.Size)
			}
		}
	}
}

// checkTruncated cuts files short before and while they are scanned.
func (cfg Config) checkTruncated(t *testing.T) {
	s := cfg.start(t)
	content := make([]byte, 1<<20)
	for range 16 {
		f, path := TempFile(t, content)
		got := begin(t.Context(), s, f)
		for _, size := range []int64{512 << 10, 1, 0} {
			if err := os.Truncate(path, size); err != nil {
				t.Error(err)
			}
		}
		cfg.wantHarmless(t, await(t, got))
		cfg.wantHarmless(t, scan(t.Context(), t, s, f))
	}
}

// checkUnreadable lends descriptors that cannot be read.
func (cfg Config) checkUnreadable(t *testing.T) {
	s := cfg.start(t)
	for _, sample := range cfg.Malicious {
		f := memory(t, int64(len(sample.Content)), sample.Content, unix.O_WRONLY)
		if v := scan(t.Context(), t, s, f); v.Outcome == scanner.Clean {
			t.Errorf("a descriptor that cannot be read: clean, %+v", v)
		}
	}
}

// checkBorrowed checks that the lent descriptor comes back as it was, and that
// nobody has kept a copy.
func (cfg Config) checkBorrowed(t *testing.T) {
	s := cfg.start(t)
	const offset = 3
	for i, content := range cfg.contents() {
		f := FileOf(t, content)
		if _, err := unix.Seek(f.FD, offset, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		before := describe(t, f.FD)
		scan(t.Context(), t, s, f)
		if after := describe(t, f.FD); after != before {
			t.Errorf("content %d: the lent descriptor was %+v and is %+v", i, before, after)
		}
		eventually(t, "no copy of the lent descriptor left", func() error {
			return expectCopies(f.FD, 1)
		})
	}
}

// checkManyScans scans more often than there are descriptors to lose unnoticed.
func (cfg Config) checkManyScans(t *testing.T) {
	s := cfg.start(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	var files []*scanner.File
	for _, content := range cfg.contents() {
		files = append(files, FileOf(t, content))
	}
	round := func(ctx context.Context) {
		for _, f := range files {
			scan(ctx, t, s, f)
		}
	}
	round(t.Context()) // What is kept for later scans, such as a connection, is open from here on.
	before := len(descriptors(t))
	const rounds = 64
	for range rounds {
		round(t.Context())
		round(cancelled)
	}
	eventually(t, "no descriptor lost by scanning", func() error {
		// A pool may still fill up; a loss in every round may not hide behind that.
		if lost := len(descriptors(t)) - before; lost >= rounds/2 {
			return fmt.Errorf("%d descriptors more after %d rounds", lost, rounds)
		}
		return nil
	})
}

func (cfg Config) checkConcurrent(t *testing.T) {
	s := cfg.start(t)
	var all sync.WaitGroup
	defer all.Wait()
	for range 4 {
		for _, content := range cfg.Clean {
			f := FileOf(t, content)
			all.Go(func() {
				for range 8 {
					wantClean(t, s.Scan(t.Context(), f))
				}
			})
		}
		for _, sample := range cfg.Malicious {
			f := FileOf(t, sample.Content)
			all.Go(func() {
				for range 8 {
					wantMalicious(t, s.Scan(t.Context(), f), sample)
				}
			})
		}
	}
}

func (cfg Config) checkDoneContext(t *testing.T) {
	s := cfg.start(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, content := range append(cfg.contents(), nil) {
		wantErr(t, scan(cancelled, t, s, FileOf(t, content)), context.Canceled)
		wantErr(t, scan(expired, t, s, FileOf(t, content)), context.DeadlineExceeded)
	}
}

// checkHang ends scans that would last for ever.
func (cfg Config) checkHang(t *testing.T) {
	if cfg.Hang == nil {
		return
	}
	t.Run("Cancel", func(t *testing.T) {
		h := cfg.hang(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := h.begin(ctx, t)
		generationNow(t, h.Scanner)
		cancel()
		wantErr(t, await(t, got), context.Canceled)
		eventually(t, "no copy of the lent descriptor left", func() error {
			return expectCopies(h.File.FD, 1)
		})
	})
	t.Run("Deadline", func(t *testing.T) {
		h := cfg.hang(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		wantErr(t, await(t, begin(ctx, h.Scanner, h.File)), context.DeadlineExceeded)
	})
}

func (cfg Config) checkCloseEndsScan(t *testing.T) {
	if cfg.Hang == nil {
		return
	}
	h := cfg.hang(t)
	got := h.begin(t.Context(), t)
	closeScanner(t, h.Scanner)
	if v := await(t, got); v.Outcome != scanner.Error {
		t.Errorf("scan under way when the scanner was closed: %v, %+v", v.Outcome, v)
	}
}

// hang returns a hung scanner that is closed when the test ends.
func (cfg Config) hang(t *testing.T) Hung {
	t.Helper()
	expectNoLeaks(t)
	h := cfg.Hang(t)
	t.Cleanup(func() { closeScanner(t, h.Scanner) })
	return h
}

// begin starts the scan that hangs and waits until it is under way.
func (h Hung) begin(ctx context.Context, t *testing.T) <-chan scanner.Verdict {
	t.Helper()
	got := begin(ctx, h.Scanner, h.File)
	if h.Started == nil {
		return got
	}
	select {
	case <-h.Started:
	case v := <-got:
		t.Fatalf("the scan was to hang and gave %v, %+v", v.Outcome, v)
	case <-time.After(patience):
		t.Fatal("the scan does not start")
	}
	return got
}

// generationNow returns the generation, or fails if asking for it blocks.
func generationNow(t *testing.T, s scanner.Scanner) scanner.Generation {
	t.Helper()
	got := make(chan scanner.Generation, 1)
	go func() { got <- s.Generation() }()
	select {
	case g := <-got:
		return g
	case <-time.After(patience):
		t.Fatal("Generation blocks")
		return ""
	}
}

func (cfg Config) checkGeneration(t *testing.T) {
	s := cfg.start(t)
	for _, content := range cfg.contents() {
		v := scan(t.Context(), t, s, FileOf(t, content))
		if now := generationNow(t, s); v.Generation != "" && v.Generation != now {
			t.Errorf("verdict of generation %q while the scanner is at %q", v.Generation, now)
		}
	}
}

func (cfg Config) checkChange(t *testing.T) {
	if cfg.Change == nil {
		return
	}
	s := cfg.start(t)
	before := generationNow(t, s)
	cfg.Change(t, s)
	after := generationNow(t, s)
	if after == "" || after == before {
		t.Errorf("generation before the change %q, after it %q", before, after)
	}
	for _, content := range cfg.contents() {
		if v := scan(t.Context(), t, s, FileOf(t, content)); v.Mark && !v.Generation.Matches(after) {
			t.Errorf("marked under generation %q, the scanner is at %q", v.Generation, after)
		}
	}
}

func (cfg Config) checkInstant(t *testing.T) {
	s, ok := cfg.start(t).(scanner.Instant)
	if !ok {
		return
	}
	for _, content := range append(cfg.contents(), nil) {
		f := FileOf(t, content)
		if n := testing.AllocsPerRun(100, func() { s.ScanInstant(f) }); n != 0 {
			t.Errorf("ScanInstant allocates %v times", n)
		}
		v, known := s.ScanInstant(f)
		if !known {
			continue
		}
		if err := CheckVerdict(v); err != nil {
			t.Error(err)
		}
		if slow := scan(t.Context(), t, s, f); slow.Outcome != v.Outcome {
			t.Errorf("ScanInstant says %v, Scan %v", v.Outcome, slow.Outcome)
		}
	}
}

func (cfg Config) checkHealth(t *testing.T) {
	if err := cfg.start(t).Health(t.Context()); err != nil {
		t.Errorf("Health of a scanner that works: %v", err)
	}
}

func (cfg Config) checkClose(t *testing.T) {
	s := cfg.start(t)
	f := FileOf(t, []byte("scanned after Close"))
	closeScanner(t, s)
	if v := scan(t.Context(), t, s, f); v.Outcome != scanner.Error {
		t.Errorf("Scan after Close: %v, %+v", v.Outcome, v)
	}
	if i, ok := s.(scanner.Instant); ok {
		if v, known := i.ScanInstant(f); known && v.Outcome != scanner.Error {
			t.Errorf("ScanInstant after Close: %v, %+v", v.Outcome, v)
		}
	}
	if err := s.Health(t.Context()); err == nil {
		t.Error("Health after Close: nil")
	}
	generationNow(t, s)
	// What start does when the test ends closes it a second time.
}

// contents returns all contents with a known verdict.
func (cfg Config) contents() [][]byte {
	var all [][]byte
	all = append(all, cfg.Clean...)
	for _, sample := range cfg.Malicious {
		all = append(all, sample.Content)
	}
	return all
}
