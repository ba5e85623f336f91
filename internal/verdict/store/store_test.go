package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/verdict"
)

func TestSurvivesRestarts(t *testing.T) {
	t.Parallel()
	const files = 3000
	dir := t.TempDir()
	for round := range uint64(4) {
		s, c := open(t, dir, Options{})
		if n := count(t, c, files*(round+1)); n != int(2*files*round) {
			t.Fatalf("restart %d: %d verdicts", round, n)
		}
		st := s.Status()
		if st.Restored != int(2*files*round) || st.Err != nil || st.Damage != nil || st.DamagedBytes != 0 {
			t.Errorf("restart %d: %+v", round, st)
		}
		keep(c, files*round, files*(round+1))
		closeStore(t, s) // flushes
		if lost := s.Status().Lost; lost != [NumLosses]uint64{} {
			t.Errorf("lost %v", lost)
		}
		if err := s.Flush(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("flush after close: %v", err)
		}
	}
}

func TestDropSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, c := open(t, dir, Options{})
	keep(c, 0, 70)
	c.Drop(layerOf(3))
	keep(c, 70, 71) // into layer 0
	closeStore(t, s)
	_, c = open(t, dir, Options{})
	if n := len(c.Explain(layerOf(3), keyOf(3))); n != 0 {
		t.Errorf("a dropped layer came back with %d verdicts", n)
	}
	if n := count(t, c, 71); n != 2*(70-10+1) {
		t.Errorf("%d verdicts", n)
	}
}

func TestContainersAreNotStored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, c := open(t, dir, Options{})
	box := verdict.ContainerScope("c")
	c.Acquire(box, "c")
	c.Keep(box, keyOf(1), 1, []verdict.Kept{{Scanner: c.Scanner("a", "1"), Current: "g", Verdict: verdictOf(1, "g")}})
	closeStore(t, s)
	s, _ = open(t, dir, Options{})
	if st := s.Status(); st.Restored != 0 || st.Bytes != headerBytes {
		t.Errorf("%+v", st)
	}
}

func TestOneProcessOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, _ := open(t, dir, Options{})
	if _, err := Open(dir, newCache(), Options{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second store: %v", err)
	}
	closeStore(t, first)
	open(t, dir, Options{})
}

// TestNotTrusted: what others can write, or what is no file, is not read.
func TestNotTrusted(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(dir, file string) error
	}{
		{"file that all may write", func(_, file string) error { return os.Chmod(file, 0o606) }},
		{"file of a group", func(_, file string) error { return os.Chmod(file, 0o660) }},
		{"file of another user", func(_, file string) error { return os.Chown(file, 1, 0) }},
		{"directory that all may write", func(dir, _ string) error { return os.Chmod(dir, 0o777) }},
		{"directory of another user", func(dir, _ string) error { return os.Chown(dir, 1, 0) }},
		{"FIFO", func(_, file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) }},
		{"symbolic link to elsewhere", func(_, file string) error {
			elsewhere := filepath.Join(t.TempDir(), "x")
			return errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file))
		}},
		{"directory in place of the file", func(_, file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) }},
		{"file in place of the directory", func(dir, _ string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := written(t, 10)
			if err := tt.spoil(dir, filepath.Join(dir, fileName)); err != nil {
				t.Fatal(err)
			}
			c := newCache()
			if s, err := Open(dir, c, Options{}); err == nil {
				closeStore(t, s)
				t.Error("opened")
			}
			if count(t, c, 10) != 0 {
				t.Error("believed")
			}
		})
	}
}

// TestBadHeader: a file that does not begin as one is put aside, and one of a
// newer version is left alone.
func TestBadHeader(t *testing.T) {
	t.Parallel()
	newer := func(b []byte) []byte {
		b[16] = version + 1
		copy(b[20:], encodeSum(newChecksummer().of(b[:20])))
		return b
	}
	older := func(b []byte) []byte {
		b[16] = 0
		copy(b[20:], encodeSum(newChecksummer().of(b[:20])))
		return b
	}
	tests := []struct {
		name  string
		spoil func([]byte) []byte
		newer bool
	}{
		{"empty", func([]byte) []byte { return nil }, false},
		{"short", func(b []byte) []byte { return b[:headerBytes-1] }, false},
		{"magic", func(b []byte) []byte { b[3] ^= 1; return b }, false},
		{"line ends", func(b []byte) []byte { return []byte(strings.Replace(string(b), "\r\n", "\n", 1)) }, false},
		{"version flipped", func(b []byte) []byte { b[16] ^= 2; return b }, false},
		{"no such version", older, false},
		{"id", func(b []byte) []byte { b[30] ^= 1; return b }, false},
		{"zeros", func(b []byte) []byte { clear(b); return b }, false},
		{"newer", newer, true},
		{"newer and otherwise unknown", func(b []byte) []byte { clear(b[24:]); return newer(b) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := written(t, 100)
			file := filepath.Join(dir, fileName)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			content = tt.spoil(content)
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.newer {
				if _, err := Open(dir, newCache(), eager()); !errors.Is(err, ErrNewerVersion) {
					t.Fatalf("error %v", err)
				}
				if now, err := os.ReadFile(file); err != nil || string(now) != string(content) {
					t.Errorf("the newer file was changed: %v", err)
				}
				return
			}
			s, c := open(t, dir, eager())
			if st := s.Status(); !errors.Is(st.Damage, ErrCorrupt) || st.Restored != 0 || count(t, c, 100) != 0 {
				t.Errorf("%+v", st)
			}
			if aside, err := os.ReadFile(filepath.Join(dir, damagedName)); err != nil || string(aside) != string(content) {
				t.Errorf("not put aside: %v", err)
			}
			keep(c, 0, 50)
			closeStore(t, s)
			s, c = open(t, dir, eager())
			if n := count(t, c, 100); n != 100 || s.Status().Damage != nil {
				t.Errorf("after it %d verdicts, %+v", n, s.Status())
			}
		})
	}
}

// TestQueueIsBounded appends with a writer that does not come.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	s := &Store{queue: make(chan item, queueLength)}
	for range queueLength + 5 {
		s.Append(verdict.Record{})
	}
	if s.Status().Lost[LossQueue] != 5 || !s.gaps.Load() {
		t.Errorf("lost %v", s.Status().Lost)
	}
	s.closed.Store(true)
	s.Append(verdict.Record{})
	if s.Status().Lost[LossClosed] != 1 {
		t.Errorf("lost %v", s.Status().Lost)
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	s := &Store{stop: make(chan struct{}), stopped: make(chan struct{}), flush: make(chan chan error)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	if err := s.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("flush: %v", err)
	}
}

// TestBoundOnDisk writes several times what the bound allows. The file never is
// larger than half of it, and what is left is right.
func TestBoundOnDisk(t *testing.T) {
	t.Parallel()
	const files, bound = 60_000, minBytes
	dir := t.TempDir()
	o := eager()
	o.MaxBytes = bound
	s, c := open(t, dir, o)
	for n := uint64(0); n < files; n += 1500 {
		keep(c, n, n+1500)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, fileName)); err != nil || info.Size() > bound/2 {
			t.Fatalf("%v: %v", info, err)
		}
	}
	st := s.Status()
	if st.Rewrites == 0 || st.Lost[LossBound] == 0 || st.Bytes > bound/2 {
		t.Errorf("%+v", st)
	}
	closeStore(t, s)
	_, c = open(t, dir, o)
	if n := count(t, c, files); n < bound/4/recordBytes {
		t.Errorf("only %d verdicts are left", n)
	}
}

// TestRewriteFreesWhatIsGone: what the cache has not, the file has not for long.
func TestRewriteFreesWhatIsGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, c := open(t, dir, eager())
	for round := 0; s.Status().Rewrites == 0; round++ {
		if round == 100 {
			t.Fatalf("never rewritten: %+v", s.Status())
		}
		keep(c, 0, 3000)
		for n := range uint64(7) {
			c.Drop(layerOf(n))
			c.Acquire(layerOf(n), fmt.Sprint("sha256:", n))
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.Bytes > 2<<20 {
		t.Errorf("%+v", st)
	}
}

func TestTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, c := open(t, dir, eager())
	long := c.Scanner(strings.Repeat("x", maxText+1), "")
	c.Keep(layerOf(1), keyOf(1), 1, []verdict.Kept{{Scanner: long, Current: "g", Verdict: verdictOf(1, "g")}})
	keep(c, 0, 10)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.Status().Lost[LossTooLong]; n != 1 {
		t.Errorf("lost %d", n)
	}
	closeStore(t, s)
	_, c = open(t, dir, eager())
	if count(t, c, 10) != 20 {
		t.Error("the others were lost as well")
	}
}

func TestLossesHaveNames(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for l := range NumLosses + 1 {
		seen[l.String()] = true
	}
	if len(seen) != int(NumLosses)+1 || seen[""] {
		t.Errorf("%v", seen)
	}
}
