package hashlist

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestPoll checks that lists are loaded because of the clock alone.
func TestPoll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.txt")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tick, stopped := make(chan time.Time), false
	s, err := start([]string{path}, tick, func() { stopped = true })
	if err != nil {
		t.Fatal(err)
	}
	before := s.Generation()
	if err := os.WriteFile(path, []byte("# more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tick <- time.Time{}
	tick <- time.Time{} // Taken only when the first one has been dealt with.
	if s.Generation() == before {
		t.Error("the change was not seen")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !stopped {
		t.Error("the clock was not stopped")
	}
}

// TestUnchangedListIsNotRead checks that a look at an unchanged list is no more
// than that.
func TestUnchangedListIsNotRead(t *testing.T) {
	s, err := New(Options{Files: []string{filepath.Join(t.TempDir(), "*")}, Interval: -1})
	if err != nil {
		t.Fatal(err)
	}
	before := s.snapshot.Load()
	if err := s.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if s.snapshot.Load() != before {
		t.Error("loaded again")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestParseCutShort checks that a long list does not outlast its context.
func TestParseCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := parse(ctx, "a", strings.Repeat("#\n", 20_000), func(entry) {})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}

// TestOnlyNeededDigests checks which digests are computed for which size.
func TestOnlyNeededDigests(t *testing.T) {
	s := &snapshot{}
	s.add(entry{algorithm: md5Digest, size: 10})
	s.add(entry{algorithm: sha1Digest, size: 20})
	s.add(entry{algorithm: sha1Digest, size: 10})
	type set = [algorithms]bool
	steps := []struct {
		size int64
		want set
	}{
		{5, set{}},
		{10, set{true, true, false}},
		{20, set{false, true, false}},
	}
	j := newJob().(*job) //nolint:errcheck // It makes nothing else.
	check := func() {
		t.Helper()
		for _, step := range steps {
			if j.prepare(s, step.size); j.needed != step.want {
				t.Errorf("%d bytes: %v, want %v", step.size, j.needed, step.want)
			}
		}
	}
	check()
	s.add(entry{algorithm: sha256Digest, size: anySize})
	for i := range steps {
		steps[i].want[sha256Digest] = true
	}
	check()
}

func TestParse(t *testing.T) {
	const m, s1 = "d41d8cd98f00b204e9800998ecf8427e", "da39a3ee5e6b4b0d3255bfef95601890afd80709"
	const s256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, c := range []struct {
		file, text string
		want       []entry
	}{
		{"a", "", nil},
		{"a", "# only\n\n   \n\t\r\n#", nil},
		{"a", m, []entry{{algorithm: md5Digest, size: anySize, name: "Listed.MD5.d41d8cd98f00b204"}}},
		{"a", strings.ToUpper(m) + "\r\n", []entry{{algorithm: md5Digest, size: anySize, name: "Listed.MD5.d41d8cd98f00b204"}}},
		{"a.txt", s1 + "  bin/a file\n", []entry{{algorithm: sha1Digest, size: anySize, name: "bin/a file"}}},
		{"a.txt", s256 + " *bin/sh \n", []entry{{algorithm: sha256Digest, size: anySize, name: "bin/sh"}}},
		{"a.txt", `\` + s256 + ` *a\nb`, []entry{{algorithm: sha256Digest, size: anySize, name: `a\nb`}}},
		{"a.txt", s256 + "\tname:with:colons", []entry{{algorithm: sha256Digest, size: anySize, name: "name:with:colons"}}},
		{"a.hdb", m + ":0:Empty", []entry{{algorithm: md5Digest, size: 0, name: "Empty"}}},
		{"a.HSB", s1 + ":*:Any:73\n" + s256 + ":12:Levels:51:255", []entry{
			{algorithm: sha1Digest, size: anySize, name: "Any"},
			{algorithm: sha256Digest, size: 12, name: "Levels"},
		}},
	} {
		var got []entry
		if err := parse(t.Context(), c.file, c.text, func(e entry) { e.digest = digest{}; got = append(got, e) }); err != nil {
			t.Errorf("%s %q: %v", c.file, c.text, err)
		}
		if len(got) != len(c.want) {
			t.Errorf("%s %q: %+v", c.file, c.text, got)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s %q: got %+v, want %+v", c.file, c.text, got[i], c.want[i])
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const m = "d41d8cd98f00b204e9800998ecf8427e"
	for _, c := range []struct{ file, line, want string }{
		{"a.txt", "x", "32 (MD5)"},
		{"a.txt", m[1:], "has 31 characters"},
		{"a.txt", "g" + m[1:], "not hexadecimal"},
		{"a.txt", m + ":12:Evil", "hexadecimal digits"},
		{"a.txt", `\\` + m, "33 characters"},
		{"a.txt", m + " a\x00b", "cannot be shown"},
		{"a.txt", m + " \x1b[31mred", "cannot be shown"},
		{"a.txt", m + " \xff", "UTF-8"},
		{"a.txt", m + " " + strings.Repeat("x", maxName+1), "shorten"},
		{"a.txt", strings.Repeat("x", 1<<20), "has 1048576 characters"},
		{"a.hsb", m, "1 fields"},
		{"a.hsb", m + "  name", "another extension"},
		{"a.hsb", m + ":1:n:1:2:3", "6 fields"},
		{"a.hsb", ":1:n", "0 characters"},
		{"a.hsb", m + "::n", "or * for any"},
		{"a.hsb", m + ":-1:n", "or * for any"},
		{"a.hsb", m + ":9223372036854775808:n", "or * for any"},
		{"a.hsb", m + ":1:", "name is empty"},
		{"a.hsb", m + ":1:n:x", "functionality level"},
		{"a.hsb", m + ":1:n:1:", "functionality level"},
	} {
		err := parse(t.Context(), c.file, "#\n"+c.line+"\n", func(entry) {})
		var bad *ParseError
		if !errors.As(err, &bad) || bad.File != c.file || bad.Line != 2 || bad.Remedy == "" ||
			!strings.Contains(err.Error(), c.want) || len(err.Error()) > 400 {
			t.Errorf("%s %.80q: error %v, want one with %q", c.file, c.line, err, c.want)
		}
	}
}

// TestDigest checks that what the list says is what is compared.
func TestDigest(t *testing.T) {
	e, err := parseDigest("000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	want := digest{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	if e.digest != want || e.algorithm != md5Digest {
		t.Errorf("%+v", e)
	}
}

// TestFIPSOnly runs itself again where MD5 and SHA-1 are forbidden.
func TestFIPSOnly(t *testing.T) {
	const mode = "fips140=only"
	md5List := "d41d8cd98f00b204e9800998ecf8427e\n"
	if !strings.Contains(os.Getenv("GODEBUG"), mode) {
		if err := parse(t.Context(), "a", md5List, func(entry) {}); err != nil {
			t.Error(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPSOnly$")
		cmd.Env = append(os.Environ(), "GODEBUG="+mode)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with GODEBUG=%s: %v\n%s", mode, err, out)
		}
		return
	}
	for _, text := range []string{md5List, "da39a3ee5e6b4b0d3255bfef95601890afd80709"} {
		if err := parse(t.Context(), "a", text, func(entry) {}); err == nil || !strings.Contains(err.Error(), "FIPS") {
			t.Errorf("%q: error %v", text, err)
		}
	}
	list := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(list, []byte(strings.Repeat("ab", sha256.Size)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Files: []string{list}})
	if err != nil {
		t.Fatal(err)
	}
	if v := s.Scan(t.Context(), scannertest.FileOf(t, []byte("content"))); v.Outcome != scanner.Clean {
		t.Errorf("%+v", v)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "#\n", "d41d8cd98f00b204e9800998ecf8427e:1:a:73:80\r\n", "d41d8cd98f00b204e9800998ecf8427e *a\n",
		`\da39a3ee5e6b4b0d3255bfef95601890afd80709  a`, "d41d8cd98f00b204e9800998ecf8427e:*:a\nx",
		"d41d8cd98f00b204e9800998ecf8427e:99999999999999999999:a", "\xff\x00:::::",
	} {
		f.Add(true, text)
		f.Add(false, text)
	}
	f.Fuzz(func(t *testing.T, clamav bool, text string) {
		path := "list"
		if clamav {
			path = "list.hsb"
		}
		s := &snapshot{}
		err := parse(t.Context(), path, text, func(e entry) {
			if e.name == "" || len(e.name) > maxName || e.size < anySize {
				t.Errorf("accepted: %+v", e)
			}
			s.add(e)
			if _, found := s.lists[e.algorithm].lookup(e.digest, max(0, e.size)); !found {
				t.Errorf("added and not found: %+v", e)
			}
		})
		var bad *ParseError
		if err != nil && (!errors.As(err, &bad) || bad.Line < 1 || bad.Line > strings.Count(text, "\n")+1 || bad.Remedy == "") {
			t.Errorf("error: %v", err)
		}
	})
}
