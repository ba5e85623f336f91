package keeper

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelRoundTrip: the next agent gets what the last one has had kept, and a
// keeper that was told to forget has nothing left.
func TestKernelRoundTrip(t *testing.T) {
	r := newRig(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	a, b := newEntry(t, "a", o), newEntry(t, "b", o)
	b.Grace, b.Fallback = 2*time.Hour, fanotify.Allow
	b.Files = append(b.Files, File{Aside, groupFD(t, o)})
	process := &Entry{Key: "process", Grace: time.Hour, Fallback: fanotify.Deny, Files: []File{{Process, pidfdOf(t, 1)}}}
	t.Cleanup(process.Close)

	c, absence, entries := r.hello(t)
	if len(entries) != 0 || absence != (Absence{}) {
		t.Errorf("a new keeper says %+v, %+v", absence, entries)
	}
	for _, e := range []*Entry{a, b, process} {
		if err := c.Keep(e); err != nil {
			t.Fatal(err)
		}
	}
	if n := copies(t, a, b, process); n != 2*6 {
		t.Errorf("keeper and agent have %d descriptors of three entries, want 6 each", n)
	}
	since := time.Now()
	c.Close()
	r.awaitAlone(t)

	c, absence, entries = r.hello(t)
	if absence.Since.Before(since) || absence.Why == "" || absence.Limit != testLimit {
		t.Errorf("the absence is %+v", absence)
	}
	if len(entries) != 3 {
		t.Fatalf("%d entries came back, want 3", len(entries))
	}
	want := map[string]*Entry{"a": a, "b": b, "process": process}
	for i := range entries {
		wantSame(t, &entries[i], want[entries[i].Key])
		entries[i].Close()
	}
	for key := range want {
		if err := c.Forget(key); err != nil {
			t.Fatal(err)
		}
	}
	if n := copies(t, a, b, process); n != 6 {
		t.Errorf("%d descriptors are left when everything was forgotten, want the agent's 6", n)
	}
	if err := c.Forget("a"); err != nil {
		t.Errorf("forget what is forgotten: %v", err)
	}
}

// wantSame wants that an entry came back as it was kept.
func wantSame(t *testing.T, got, want *Entry) {
	t.Helper()
	if got.Grace != want.Grace || got.Fallback != want.Fallback || !bytes.Equal(got.State, want.State) {
		t.Errorf("%s came back as %+v, want %+v", got.Key, got, want)
	}
	if len(got.Files) != len(want.Files) {
		t.Errorf("%s came back with files %v, want %v", got.Key, got.Files, want.Files)
	}
	for _, f := range want.Files {
		found := false
		for _, g := range got.Files {
			found = found || g.Kind == f.Kind && sameFile(t, g.FD, f.FD)
		}
		if !found {
			t.Errorf("%s came back without its %s, or with another one", got.Key, f.Kind)
		}
	}
}

// TestKernelKeepAgain: an entry that is kept again has the new files, and the leases
// that it had.
func TestKernelKeepAgain(t *testing.T) {
	r := newRig(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	first, second := newEntry(t, "key", o), newEntry(t, "key", o)
	c, _, _ := r.hello(t)
	if err := c.Keep(first); err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	serial, err := c.Lease("key", null)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Keep(second); err != nil {
		t.Fatal(err)
	}
	if n := r.entry("key").Leases; n != 1 {
		t.Errorf("%d leases after the entry was kept again, want 1", n)
	}
	kerneltest.Await(t, "the keeper has the second entry's files alone", func() bool {
		return copies(t, first) == 2 && copies(t, second) == 4
	})
	_, err = c.Lease("nobody", null)
	wantRefused(t, "a lease of no entry", err)
	c.Unlease(serial)
	if err := c.Beat(); err != nil {
		t.Fatal(err)
	}
	if n := r.entry("key").Leases; n != 0 {
		t.Errorf("%d leases after the last was over", n)
	}
	c.Close()
	r.awaitAlone(t)
	c, _, entries := r.hello(t)
	for i := range entries {
		wantSame(t, &entries[i], second)
		entries[i].Close()
	}
	if len(entries) != 1 {
		t.Errorf("%d entries, want 1", len(entries))
	}
	if err := c.Forget("key"); err != nil {
		t.Fatal(err)
	}
}

// TestKernelClockMoved: a clock that was set during an absence is told of, and one
// that was not isn't.
func TestKernelClockMoved(t *testing.T) {
	r := newRig(t)
	for _, moved := range []time.Duration{0, time.Hour, -time.Hour} {
		c, _, _ := r.hello(t)
		c.Close()
		r.awaitAlone(t)
		r.mu.Lock()
		r.offset -= moved // as if it had been set since
		r.mu.Unlock()
		c, a, _ := r.hello(t)
		if off := (a.ClockMoved - moved.Abs()).Abs(); off > time.Second {
			t.Errorf("the clock was set by %v, and the absence says %v", moved, a.ClockMoved)
		}
		c.Close()
		r.awaitAlone(t)
	}
}
