package hashlist_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/hashlist"
	"github.com/assay-project/assay/scanner/scannertest"
)

func reload(t *testing.T, s *hashlist.Scanner) {
	t.Helper()
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Errorf("Health after a reload that worked: %v", err)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "*.txt"))
	content := []byte("content")
	seen := map[scanner.Generation]string{}
	expect := func(step string, want scanner.Outcome) {
		t.Helper()
		wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, content)), want)
		if other, old := seen[s.Generation()]; old {
			t.Errorf("%s: the generation is that of %q", step, other)
		}
		seen[s.Generation()] = step
	}
	expect("no list", scanner.Clean)

	path := write(t, dir, "a.txt", "%x evil", sha256.Sum256(content))
	reload(t, s)
	expect("gained", scanner.Malicious)
	gained := s.Generation()

	write(t, dir, "a.txt", "%x evil", sha256.Sum256([]byte("another")))
	reload(t, s)
	expect("rewritten to the same length", scanner.Clean)

	replacement := write(t, dir, "a.tmp", "%x evil", sha256.Sum256(content))
	if err := os.Rename(replacement, path); err != nil {
		t.Fatal(err)
	}
	reload(t, s)
	if s.Generation() != gained {
		t.Error("the same content has another generation")
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	reload(t, s)
	wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, content)), scanner.Clean)
}

func TestReloadOfBadList(t *testing.T) {
	dir, content := t.TempDir(), []byte("content")
	path := write(t, dir, "a.txt", "%x evil\n", sha256.Sum256(content))
	s := open(t, path)
	before := s.Generation()

	write(t, dir, "a.txt", "%x evil\nrubbish\n", sha256.Sum256(content))
	for range 2 { // The second time nothing has changed on disk.
		var bad *hashlist.ParseError
		if err := s.Reload(t.Context()); !errors.As(err, &bad) || bad.Line != 2 || bad.File != path {
			t.Errorf("Reload: %v", err)
		}
		err := s.Health(t.Context())
		if err == nil || !strings.Contains(err.Error(), "a.txt:2: ") {
			t.Errorf("Health: %v", err)
		}
		v := s.Scan(t.Context(), scannertest.FileOf(t, content))
		if wantOutcome(t, v, scanner.Malicious); v.Generation != before {
			t.Errorf("generation %q, before the bad list %q", v.Generation, before)
		}
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Reload without the list: %v", err)
	}
	wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, content)), scanner.Malicious)

	write(t, dir, "a.txt", "# nothing\n")
	reload(t, s)
	wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, content)), scanner.Clean)
}

func TestReloadCutShort(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "*.txt"))
	before := s.Generation()
	write(t, dir, "a.txt", "%s", strings.Repeat("# a long list\n", 20_000)+"rubbish")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Reload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Reload: %v", err)
	}
	if err := s.Reload(&meddler{Context: ctx, n: -1}); !errors.Is(err, context.Canceled) {
		t.Errorf("Reload: %v", err)
	}
	if s.Generation() != before || s.Health(t.Context()) != nil {
		t.Errorf("a reload that did not happen: generation %q to %q, health %v", before, s.Generation(), s.Health(t.Context()))
	}
	if err := s.Reload(t.Context()); err == nil {
		t.Error("the list that was not loaded is taken for loaded")
	}
}

func TestReloadAfterClose(t *testing.T) {
	s := openBare(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); !errors.Is(err, scanner.ErrUnavailable) {
		t.Errorf("Reload: %v", err)
	}
}
