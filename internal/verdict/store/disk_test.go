package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// tmpfs mounts a small filesystem.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	kerneltest.Mount(t, "tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size)
	return dir
}

func remount(t *testing.T, dir string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, data); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "8m")
	s, c := open(t, dir, eager())
	keep(c, 0, 100)
	closeStore(t, s)
	remount(t, dir, unix.MS_RDONLY, "")
	s, c = open(t, dir, eager())
	if n := count(t, c, 200); n != 200 {
		t.Errorf("%d verdicts were read", n)
	}
	keep(c, 100, 200)
	if err := s.Flush(t.Context()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("flush: %v", err)
	}
	st := s.Status()
	if !st.ReadOnly || !errors.Is(st.Err, ErrReadOnly) || st.Lost[LossReadOnly] != 200 {
		t.Errorf("%+v", st)
	}
	if count(t, c, 200) != 400 {
		t.Error("the cache does not work on")
	}
	if _, err := Open(dir, newCache(), eager()); !errors.Is(err, ErrLocked) {
		t.Errorf("a second store: %v", err)
	}
	closeStore(t, s)
	// Nothing there, and nothing can be made.
	for _, path := range []string{filepath.Join(dir, "new"), filepath.Join(dir, "new", "newer")} {
		if _, err := Open(path, newCache(), eager()); !errors.Is(err, ErrReadOnly) {
			t.Errorf("new directory: %v", err)
		}
	}
	remount(t, dir, 0, "size=8m")
	if err := errors.Join(os.Remove(filepath.Join(dir, fileName)), os.Remove(filepath.Join(dir, lockName))); err != nil {
		t.Fatal(err)
	}
	remount(t, dir, unix.MS_RDONLY, "")
	if _, err := Open(dir, newCache(), eager()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("new file: %v", err)
	}
}

// TestRewriteFails: what cannot be written anew can still be appended to.
func TestRewriteFails(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "8m")
	o := eager()
	o.Repair = time.Hour // one attempt is enough
	s, c := open(t, dir, o)
	keep(c, 0, 10)
	closeStore(t, s)
	if err := os.Mkdir(filepath.Join(dir, newName), 0o700); err != nil { // in a rewrite's way
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, newName, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, c = open(t, dir, o)
	s.gaps.Store(true)
	keep(c, 10, 20)
	if err := s.Flush(t.Context()); err != nil {
		t.Errorf("without a rewrite, appending still works: %v", err)
	}
	if s.Status().Rewrites != 0 || !s.gaps.Load() {
		t.Error("rewritten")
	}
	closeStore(t, s)
	_, c = open(t, dir, o)
	if n := count(t, c, 20); n != 40 {
		t.Errorf("%d verdicts", n)
	}
}

// TestFullDisk: what was lost while the disk was full is there once it is not.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "256k")
	s, c := open(t, dir, eager())
	const files = 4000
	keep(c, 0, 100)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	keep(c, 100, files)
	if err := s.Flush(t.Context()); !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("flush: %v", err)
	}
	if st := s.Status(); !errors.Is(st.Err, ErrFull) || st.Lost[LossWrite] == 0 {
		t.Errorf("%+v", st)
	}
	if count(t, c, files) != 2*files {
		t.Error("the cache does not work on")
	}
	remount(t, dir, 0, "size=4m")
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.Err != nil || st.Rewrites == 0 {
		t.Errorf("%+v", st)
	}
	closeStore(t, s)
	s, c = open(t, dir, eager())
	if n := count(t, c, files); n != 2*files || s.Status().Damage != nil {
		t.Errorf("%d verdicts, %+v", n, s.Status())
	}
}

// TestFullDiskStaysFull: that there is nothing new to write says nothing about the disk.
func TestFullDiskStaysFull(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "256k")
	s, c := open(t, dir, Options{Every: time.Hour, Retry: time.Hour, Repair: time.Hour})
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	keep(c, 0, 1000) // more than the space left in the file's page
	for i := range 5 {
		if err := s.Flush(t.Context()); !errors.Is(err, ErrFull) || !errors.Is(s.Status().Err, ErrFull) {
			t.Fatalf("flush %d: %v, %+v", i, err, s.Status())
		}
	}
	remount(t, dir, 0, "size=4m")
	keep(c, 4000, 4001)
	if err := s.Flush(t.Context()); err != nil || s.Status().Err != nil {
		t.Errorf("with space: %v, %+v", err, s.Status())
	}
	closeStore(t, s)
}

// TestFullDiskAtTheEnd: a store that was full when its process ended is whole.
func TestFullDiskAtTheEnd(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t, "256k")
	s, c := open(t, dir, eager())
	for n := uint64(0); n < 4000; n += 100 {
		keep(c, n, n+100)
		_ = s.Flush(t.Context()) // fails in the end
	}
	closeStore(t, s)
	s, c = open(t, dir, eager())
	if n := count(t, c, 4000); n < 1000 || s.Status().Damage != nil {
		t.Errorf("%d verdicts, %+v", n, s.Status())
	}
}
