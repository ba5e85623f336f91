package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// walkAll returns what is found at a path, relative to it, with the content.
func walkAll(t *testing.T, w *walker, path string) []string {
	t.Helper()
	var found []string
	w.found = func(f *os.File) error {
		content := make([]byte, 16)
		n, _ := f.Read(content)
		name, err := filepath.Rel(path, f.Name())
		found = append(found, name+"="+string(content[:n]))
		return errors.Join(err, f.Close())
	}
	if w.failed == nil {
		w.failed = func(path string, err error) { t.Errorf("%s: %v", path, err) }
	}
	at, err := openPlace(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.walk(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	return found
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestWalkFindsRegularFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "b"), "1")
	write(t, filepath.Join(dir, "a/x"), "2")
	write(t, filepath.Join(dir, "a/y/z"), "3")
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "no")
	err := errors.Join(os.Symlink(outside, filepath.Join(dir, "a/link")), os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "file")),
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := walkAll(t, new(walker), dir), []string{"a/x=2", "a/y/z=3", "b=1"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if got, want := walkAll(t, new(walker), filepath.Join(dir, "b")), []string{".=1"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// A directory that is renamed while the walk is in it stays the one that is walked.
func TestWalkIsNotLedAstray(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "d/1"), "mine")
	write(t, filepath.Join(dir, "d/2"), "mine")
	write(t, filepath.Join(outside, "2"), "other")
	at, err := openPlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	w := &walker{failed: func(path string, err error) { t.Errorf("%s: %v", path, err) }, found: func(f *os.File) error {
		if len(got) == 0 {
			if err := errors.Join(os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "e")), os.Symlink(outside, filepath.Join(dir, "d"))); err != nil {
				return err
			}
		}
		content := make([]byte, 16)
		n, err := f.Read(content)
		got = append(got, string(content[:n]))
		return errors.Join(err, f.Close())
	}}
	if err := w.walk(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{"mine", "mine"}) {
		t.Errorf("read %q", got)
	}
}

func TestWalkStaysOnItsFilesystem(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a/x"), "1")
	root, err := openPlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	root.dev++ // as if everything below were mounted there
	w := &walker{failed: func(path string, err error) { t.Errorf("%s: %v", path, err) }, found: func(f *os.File) error {
		t.Errorf("found %s", f.Name())
		return f.Close()
	}}
	if err := w.walk(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	w = &walker{cross: true}
	if got := walkAll(t, w, dir); len(got) != 1 {
		t.Errorf("found %q with cross", got)
	}
}

func TestWalkEnds(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), "1")
	write(t, filepath.Join(dir, "b"), "2")
	stop := errors.New("stop")
	n := 0
	w := &walker{found: func(f *os.File) error { n++; return errors.Join(stop, f.Close()) }}
	at, err := openPlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.walk(t.Context(), at); !errors.Is(err, stop) || n != 1 {
		t.Errorf("walk() = %v after %d files", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if at, err = openPlace(dir); err != nil {
		t.Fatal(err)
	}
	if err := w.walk(ctx, at); !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("walk() = %v after %d files", err, n)
	}
}
