package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// An event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// A testID is one test of one package.
type testID struct{ pkg, test string }

// A gate prints a run as `go test` does without -v, and counts what ran.
type gate struct {
	w       io.Writer
	output  map[testID]*strings.Builder // of tests that have not ended yet
	passed  int
	failed  []testID
	skipped []testID
	reasons map[testID]string // what a skipped test said
}

func newGate(w io.Writer) *gate {
	return &gate{w: w, output: make(map[testID]*strings.Builder), reasons: make(map[testID]string)}
}

// read follows r to its end. A line that is no event is printed as it is.
func (g *gate) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			g.line(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the test output: %w", err)
		}
	}
}

func (g *gate) line(line string) {
	var ev event
	if err := json.Unmarshal([]byte(line), &ev); err != nil || ev.Action == "" {
		fmt.Fprint(g.w, line)
		return
	}
	g.event(ev)
}

func (g *gate) event(ev event) {
	id := testID{ev.Package, ev.Test}
	switch ev.Action {
	case "build-output":
		fmt.Fprint(g.w, ev.Output)
	case "output":
		g.collect(id, ev.Output)
	case "pass", "fail", "skip":
		g.end(id, ev.Action)
	}
}

func (g *gate) collect(id testID, text string) {
	b := g.output[id]
	if b == nil {
		b = new(strings.Builder)
		g.output[id] = b
	}
	b.WriteString(text)
}

// end prints what a test or package said, if it failed; of a package that
// passed, its closing line.
func (g *gate) end(id testID, action string) {
	var text string
	if b := g.output[id]; b != nil {
		text = b.String()
		delete(g.output, id)
	}
	switch {
	case id.test == "" && action == "fail":
		g.flushUnended(id.pkg)
		fmt.Fprint(g.w, text)
	case id.test == "":
		fmt.Fprint(g.w, closingLine(text))
	case action == "fail":
		g.failed = append(g.failed, id)
		fmt.Fprint(g.w, text)
	case action == "skip":
		g.skipped = append(g.skipped, id)
		g.reasons[id] = text
	default:
		g.passed++
	}
}

// flushUnended prints what tests said that were running when the package's
// process died; the panic and its stack are there.
func (g *gate) flushUnended(pkg string) {
	for id, b := range g.output {
		if id.pkg == pkg && id.test != "" {
			fmt.Fprint(g.w, b.String())
			delete(g.output, id)
		}
	}
}

// closingLine returns the last line of a package's own output.
func closingLine(text string) string {
	lines := strings.SplitAfter(strings.TrimRight(text, "\n"), "\n")
	last := lines[len(lines)-1]
	if last == "" {
		return ""
	}
	return last + "\n"
}

// refusals says why a run that `go test` calls good is not.
func (g *gate) refusals(allowed patterns) []string {
	var why []string
	if g.passed == 0 {
		why = append(why, "no test ran")
	}
	for _, id := range g.skipped {
		if !allowed.match(id.test) {
			why = append(why, fmt.Sprintf("skipped: %s (%s)\n%s      name it in %s if this machine cannot run it",
				id.test, id.pkg, indent(g.reasons[id]), allowSkip))
		}
	}
	return why
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      " + strings.TrimLeft(line, " "))
	}
	return b.String()
}

// summary prints the closing lines of the run.
func (g *gate) summary(refusals []string) {
	for _, id := range g.failed {
		fmt.Fprintf(g.w, "testgate: failed: %s (%s)\n", id.test, id.pkg)
	}
	for _, why := range refusals {
		fmt.Fprintln(g.w, "testgate:", why)
	}
	fmt.Fprintf(g.w, "testgate: %d passed, %d failed, %d skipped\n", g.passed, len(g.failed), len(g.skipped))
}

// patterns name tests, as of path.Match on the test's full name.
type patterns []string

func parsePatterns(list string) (patterns, error) {
	fields := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	for _, p := range fields {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", p, err)
		}
	}
	return fields, nil
}

// match reports whether a pattern names test itself or the test that it is a
// part of.
func (p patterns) match(test string) bool {
	top, _, _ := strings.Cut(test, "/")
	return slices.ContainsFunc(p, func(pattern string) bool {
		full, errFull := path.Match(pattern, test)
		whole, errWhole := path.Match(pattern, top)
		return errFull == nil && full || errWhole == nil && whole
	})
}
