package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// quietProgram is a program whose output nobody reads.
func quietProgram() *program {
	return &program{stdin: os.Stdin, stdout: io.Discard, stderr: io.Discard}
}

// section returns the part of the reference under the heading "## title".
func section(doc, title string) string {
	_, after, found := strings.Cut(doc, "\n## "+title+"\n")
	if !found {
		return ""
	}
	text, _, _ := strings.Cut(after, "\n## ")
	return text
}

// mentions reports whether text has word in code, as a whole word.
func mentions(text, word string) bool {
	return regexp.MustCompile("`[^`\n]*" + regexp.QuoteMeta(word) + "([ =,|`][^`\n]*)?`").MatchString(text)
}

func TestReferenceIsComplete(t *testing.T) {
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	common := section(doc, "What all commands have in common")
	for _, n := range completionWords(quietProgram().app())[1:] {
		if n.commands != nil {
			continue // a group of commands has nothing of its own to explain
		}
		title := strings.TrimPrefix(n.path, "assay ")
		text := section(doc, title)
		if !strings.Contains(text, "\n"+n.path) {
			t.Errorf("docs/cli.md has no section %q with a synopsis", title)
			continue
		}
		for _, f := range n.flags {
			checkFlag(t, f, n.path, text, common)
		}
	}
}

// checkFlag fails the test unless all names of f stand in the section of its
// command, or among those that all commands have in common.
func checkFlag(t *testing.T, f cli.Flag, path, text, common string) {
	t.Helper()
	for _, name := range dashedNames(f) {
		if !mentions(text, name) && !mentions(common, name) {
			t.Errorf("docs/cli.md does not mention %s of %q", name, path)
		}
	}
}

func TestEveryCommandTeachesWithExamples(t *testing.T) {
	app := quietProgram().app()
	if !strings.Contains(app.Description, "Examples:") {
		t.Error("the program's help has no examples")
	}
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			self := path + " " + c.Name
			if !strings.Contains(c.Description, "Examples:") || !strings.Contains(c.Description, self) {
				t.Errorf("the help of %q has no example of it", self)
			}
			walk(self, c.Subcommands)
		}
	}
	walk("assay", app.Commands)
}
