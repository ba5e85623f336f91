package hashlist_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/hashlist"
	"github.com/assay-project/assay/scanner/scannertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The samples that the lists of these tests know.
func evilMD5() []byte    { return []byte("evil by md5") }
func evilSHA1() []byte   { return bytes.Repeat([]byte("evil by sha-1 "), 20_000) }
func evilSHA256() []byte { return bytes.Repeat([]byte("evil by sha-256 "), 64<<10) }
func evilTiny() []byte   { return []byte("\n") }

// Samples that they do not know.
func harmless() [][]byte {
	return [][]byte{[]byte("harmless"), []byte("x"), bytes.Repeat([]byte("harmless "), 40_000), make([]byte, 100)}
}

// write puts a list into dir and returns its path.
func write(tb testing.TB, dir, name, text string, args ...any) string {
	tb.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, fmt.Appendf(nil, text, args...), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// open returns a scanner of lists that only the test reloads.
func open(tb testing.TB, files ...string) *hashlist.Scanner {
	tb.Helper()
	s, err := hashlist.New(hashlist.Options{Files: files, Interval: -1})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// lists writes one list of each kind and returns a pattern for all of them.
func lists(tb testing.TB, dir string) string {
	tb.Helper()
	write(tb, dir, "a.hdb", "# comment\n%x:%d:Md5.Evil\n", md5.Sum(evilMD5()), len(evilMD5()))
	write(tb, dir, "b.hsb", "%x:*:Sha1.Evil:73\r\n\r\n%x:1:Tiny.Evil:73:80\n", sha1.Sum(evilSHA1()), sha1.Sum(evilTiny()))
	write(tb, dir, "c.txt", "%X *Sha256.Evil\n", sha256.Sum256(evilSHA256()))
	return filepath.Join(dir, "*")
}

func TestConformance(t *testing.T) {
	samples := []scannertest.Sample{{Content: scannertest.EICAR(), Signature: "Eicar"}}
	t.Run("BuiltIn", func(t *testing.T) {
		scannertest.Run(t, scannertest.Config{
			New:       func(t *testing.T) scanner.Scanner { t.Helper(); return openBare(t) },
			Malicious: samples,
			Clean:     harmless(),
		})
	})
	dirs := map[scanner.Scanner]string{}
	t.Run("Lists", func(t *testing.T) {
		scannertest.Run(t, scannertest.Config{
			New: func(t *testing.T) scanner.Scanner {
				t.Helper()
				dir := t.TempDir()
				s := openBare(t, lists(t, dir))
				dirs[s] = dir
				return s
			},
			Malicious: append(samples,
				scannertest.Sample{Content: evilMD5(), Signature: "Md5.Evil"},
				scannertest.Sample{Content: evilSHA1(), Signature: "Sha1.Evil"},
				scannertest.Sample{Content: evilSHA256(), Signature: "Sha256.Evil"},
				scannertest.Sample{Content: evilTiny(), Signature: "Tiny.Evil"},
			),
			Clean: harmless(),
			Hang: func(t *testing.T) scannertest.Hung {
				t.Helper()
				return scannertest.Hung{
					Scanner: openBare(t, lists(t, t.TempDir())),
					File:    scannertest.SparseFile(t, 1<<40), // Hours of digesting.
				}
			},
			Change: func(t *testing.T, s scanner.Scanner) {
				t.Helper()
				write(t, dirs[s], "d.txt", "%x", sha256.Sum256([]byte("something new")))
				if err := s.(*hashlist.Scanner).Reload(t.Context()); err != nil { //nolint:errcheck // It is what New returns.
					t.Fatal(err)
				}
			},
		})
	})
}

// openBare is open for the conformance suite, which closes the scanner itself.
func openBare(t *testing.T, files ...string) *hashlist.Scanner {
	t.Helper()
	s, err := hashlist.New(hashlist.Options{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantOutcome(t *testing.T, v scanner.Verdict, want scanner.Outcome) {
	t.Helper()
	if v.Outcome != want {
		t.Errorf("got %v, want %v: %+v", v.Outcome, want, v)
	}
	if err := scannertest.CheckVerdict(v); err != nil {
		t.Error(err)
	}
}

func TestEICAR(t *testing.T) {
	eicar := scannertest.EICAR()
	space := bytes.Repeat([]byte(" \t\r\n\x1a"), 12)
	with := func(tail []byte) []byte { return append(bytes.Clone(eicar), tail...) }
	for name, c := range map[string]struct {
		content []byte
		want    scanner.Outcome
	}{
		"exact":             {eicar, scanner.Malicious},
		"newline":           {with([]byte("\n")), scanner.Malicious},
		"60 white space":    {with(space), scanner.Malicious},
		"61 white space":    {with(append(bytes.Clone(space), ' ')), scanner.Clean},
		"other white space": {with([]byte("\v")), scanner.Clean},
		"text after":        {with([]byte("x")), scanner.Clean},
		"text after space":  {with([]byte("  x")), scanner.Clean},
		"space before":      {append([]byte(" "), eicar...), scanner.Clean},
		"cut":               {eicar[:67], scanner.Clean},
		"other text":        {bytes.Repeat([]byte("x"), 68), scanner.Clean},
	} {
		t.Run(name, func(t *testing.T) {
			wantOutcome(t, open(t).Scan(t.Context(), scannertest.FileOf(t, c.content)), c.want)
		})
	}
}

// TestNoPlainEICAR looks for the text where another scanner would: in the
// sources of the package and in the program that it is built into.
func TestNoPlainEICAR(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, os.Args[0]) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, scannertest.EICAR()) {
			t.Errorf("%s has the plain text of the EICAR test file", path)
		}
	}
}

func TestSizeQualified(t *testing.T) {
	content := []byte("some content")
	for name, c := range map[string]struct {
		size string
		want scanner.Outcome
	}{
		"its size":     {fmt.Sprint(len(content)), scanner.Malicious},
		"any size":     {"*", scanner.Malicious},
		"another size": {fmt.Sprint(len(content) + 1), scanner.Clean},
	} {
		t.Run(name, func(t *testing.T) {
			list := write(t, t.TempDir(), "a.hsb", "%x:%s:Evil\n", sha256.Sum256(content), c.size)
			wantOutcome(t, open(t, list).Scan(t.Context(), scannertest.FileOf(t, content)), c.want)
		})
	}
}

// A meddler is a context that does something to the file when it is asked, for
// the nth time, whether the scan may go on.
type meddler struct {
	context.Context
	n  int
	do func()
}

func (m *meddler) Err() error {
	if m.n--; m.n == 0 {
		m.do()
	}
	return m.Context.Err()
}

func TestChangedWhileScanned(t *testing.T) {
	evil := bytes.Repeat([]byte("x"), 300_000)
	all := write(t, t.TempDir(), "a.txt", "%x", sha256.Sum256(evil))
	for name, c := range map[string]struct {
		list string
		call int   // of ctx.Err, at which it happens
		size int64 // that the file then gets
		want scanner.Outcome
	}{
		"cut before":              {all, 2, 100_000, scanner.Error},
		"cut to nothing":          {all, 2, 0, scanner.Error},
		"cut in the middle":       {all, 3, 100_000, scanner.Error},
		"grown in the middle":     {all, 3, 900_000, scanner.Error},
		"grown much":              {all, 2, 1 << 40, scanner.Error},
		"grown by one at the end": {all, 5, 300_001, scanner.Error},
		"cut at the end":          {all, 5, 299_999, scanner.Malicious},
		"unlisted size, cut":      {"", 2, 299_999, scanner.Error},
		"unlisted size, emptied":  {"", 2, 0, scanner.Error},
		"unlisted size, grown":    {"", 2, 300_001, scanner.Error},
		"unlisted size, grown on": {"", 3, 300_001, scanner.Error},
		"not at all":              {all, 99, 0, scanner.Malicious},
		"not at all, unlisted":    {"", 99, 0, scanner.Clean},
	} {
		t.Run(name, func(t *testing.T) {
			f, path := scannertest.TempFile(t, evil)
			ctx := &meddler{Context: t.Context(), n: c.call, do: func() {
				if err := os.Truncate(path, c.size); err != nil {
					t.Error(err)
				}
			}}
			var files []string
			if c.list != "" {
				files = append(files, c.list)
			}
			v := open(t, files...).Scan(ctx, f)
			wantOutcome(t, v, c.want)
			if v.Outcome == scanner.Error && !errors.Is(v.Err, scanner.ErrRead) {
				t.Errorf("error: %v", v.Err)
			}
			if changed := ctx.n <= 0; changed == v.Mark {
				t.Errorf("changed %v, marked %v", changed, v.Mark)
			}
		})
	}
}

// TestNoLength scans a file that has content and says that it is empty.
func TestNoLength(t *testing.T) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := open(t).Scan(t.Context(), &scanner.File{FD: int(f.Fd())})
	if wantOutcome(t, v, scanner.Error); !errors.Is(v.Err, scanner.ErrRead) {
		t.Errorf("error: %v", v.Err)
	}
}

func TestScanKeepsItsGeneration(t *testing.T) {
	evil, dir := bytes.Repeat([]byte("x"), 300_000), t.TempDir()
	write(t, dir, "a.txt", "%x evil", sha256.Sum256(evil))
	s := open(t, filepath.Join(dir, "*.txt"))
	before := s.Generation()
	v := s.Scan(&meddler{Context: t.Context(), n: 3, do: func() {
		write(t, dir, "a.txt", "# nothing is evil any more\n")
		if err := s.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}}, scannertest.FileOf(t, evil))
	wantOutcome(t, v, scanner.Malicious)
	if v.Generation != before || s.Generation() == before {
		t.Errorf("before %q, verdict %q, now %q", before, v.Generation, s.Generation())
	}
	wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, evil)), scanner.Clean)
}

func TestNotRegular(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, f := range []*os.File{r, dir} {
		v := open(t).Scan(t.Context(), &scanner.File{FD: int(f.Fd())})
		wantOutcome(t, v, scanner.Unscannable)
	}
	v := open(t).Scan(t.Context(), &scanner.File{FD: -1})
	if wantOutcome(t, v, scanner.Error); !errors.Is(v.Err, scanner.ErrRead) || !errors.Is(v.Err, unix.EBADF) {
		t.Errorf("error: %v", v.Err)
	}
}

func TestScanInstant(t *testing.T) {
	s := open(t, write(t, t.TempDir(), "a.hsb", "%x:1000:Evil\n", sha256.Sum256([]byte("x"))))
	everything := open(t, write(t, t.TempDir(), "a.hsb", "%x:*:Evil\n", sha256.Sum256([]byte("x"))))
	for size, want := range map[int64]bool{
		-1: false, 0: false, 1: true, 67: true, 68: false, 128: false, 129: true, 999: true, 1000: false, 1001: true,
	} {
		f := &scanner.File{FD: -1, Size: size}
		v, known := s.ScanInstant(f)
		if known != want || known && v != scanner.CleanVerdict(s.Generation()) {
			t.Errorf("%d bytes: %v, %+v", size, known, v)
		}
		if n := testing.AllocsPerRun(10, func() { s.ScanInstant(f) }); n != 0 {
			t.Errorf("%d bytes: %v allocations", size, n)
		}
		if v, known := everything.ScanInstant(f); known {
			t.Errorf("%d bytes against an entry for any size: %+v", size, v)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := write(t, dir, "bad.hsb", "# fine\nnothing\n")
	huge := write(t, dir, "huge", "")
	if err := os.Truncate(huge, 2<<30); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"relative":  {"lists/a.txt", "absolute"},
		"missing":   {filepath.Join(dir, "missing"), "no such file"},
		"pattern":   {dir + "/[", "brackets"},
		"fifo":      {fifo, "regular"},
		"directory": {dir, "regular"},
		"huge":      {huge, "regular file of at most"},
		"bad line":  {bad, "bad.hsb:2: "},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := hashlist.New(hashlist.Options{Files: []string{c.path}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if s != nil {
				t.Error("a scanner besides the error")
			}
		})
	}
}
