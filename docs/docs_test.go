// Package docs_test keeps the documentation honest: what it names exists. It owns
// no text; whether a command reference is complete is tested beside the command.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = ".."

// read returns the text of a file below the repository's root.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages lists the documentation, by path below the root.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			all = append(all, strings.TrimPrefix(f, root+"/"))
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d pages found: %q", len(all), all)
	}
	return all
}

// declaredTests returns the names of all test functions of the repository.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestNamedTestsExist: a page that says which test shows something names a test
// that is there.
func TestNamedTestsExist(t *testing.T) {
	declared := declaredTests(t)
	name := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
	for _, page := range pages(t) {
		for _, m := range name.FindAllStringSubmatch(read(t, page), -1) {
			if !declared[m[1]] {
				t.Errorf("%s names %s, which no file declares", page, m[1])
			}
		}
	}
	if n := len(name.FindAllString(read(t, "docs/kernel.md"), -1)); n < 10 {
		t.Errorf("docs/kernel.md names %d tests: its facts are not shown", n)
	}
}

// TestKernelTestsAreExplained: what the kernel tests of the event path show is
// written down.
func TestKernelTestsAreExplained(t *testing.T) {
	text := read(t, "docs/kernel.md") + read(t, "ARCHITECTURE.md")
	source := read(t, "internal/fanotify/kernel_test.go")
	for _, m := range regexp.MustCompile(`(?m)^func (TestKernel\w+)\(`).FindAllStringSubmatch(source, -1) {
		if !strings.Contains(text, "`"+m[1]+"`") {
			t.Errorf("neither docs/kernel.md nor ARCHITECTURE.md says what %s is about", m[1])
		}
	}
}

// TestLinksResolve: links between pages lead to files that exist, and to headings
// that are there.
func TestLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(withoutCode(read(t, page)), -1) {
			if err := follow(t, page, m[1]); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			}
		}
	}
}

// follow reports what is wrong with a link that stands on page.
func follow(t *testing.T, page, target string) error {
	t.Helper()
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return nil
	}
	path, anchor, _ := strings.Cut(target, "#")
	file := page
	if path != "" {
		file = filepath.Join(filepath.Dir(page), path)
	}
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		return err
	}
	if anchor == "" {
		return nil
	}
	if known := anchors(read(t, file)); !slices.Contains(known, anchor) {
		return fmt.Errorf("no such heading; there are %q", known)
	}
	return nil
}

// anchors returns the names that headings get on a page, as GitHub makes them:
// lower case, without punctuation, hyphens for spaces.
func anchors(text string) []string {
	heading := regexp.MustCompile(`(?m)^#+ +(.*)$`)
	dropped := regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	var names []string
	for _, m := range heading.FindAllStringSubmatch(withoutCode(text), -1) {
		name := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// withoutCode drops fenced blocks, in which brackets and hashes mean nothing.
func withoutCode(text string) string {
	return regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
}

// TestMakeTargetsExist: every `make TARGET` that a page tells people to run is one.
func TestMakeTargetsExist(t *testing.T) {
	makefile := read(t, "Makefile")
	run := regexp.MustCompile("(?m)(?:^    |`)make ([a-z][a-z0-9 -]*)")
	for _, page := range pages(t) {
		for _, m := range run.FindAllStringSubmatch(read(t, page), -1) {
			for target := range strings.FieldsSeq(m[1]) {
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).MatchString(makefile) {
					t.Errorf("%s says `make %s`, which the Makefile does not have", page, target)
				}
			}
		}
	}
}
