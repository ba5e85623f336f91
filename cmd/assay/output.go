package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A style is how a cell looks on a terminal.
type style string

// The styles, as parameters of the terminal's SGR sequence.
const (
	plain  style = ""
	bold   style = "1"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// wantsColour reports whether out is a terminal whose user has nothing against
// colour (https://no-color.org).
func wantsColour(out *os.File, getenv func(string) string) bool {
	if getenv("NO_COLOR") != "" || getenv("TERM") == "dumb" {
		return false
	}
	return isTerminal(out)
}

// wantsProgress reports whether a progress bar can be shown on out.
func wantsProgress(out *os.File, getenv func(string) string) bool {
	return getenv("TERM") != "dumb" && isTerminal(out)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// paint returns text in style s if the program may use colour.
func (p *program) paint(s style, text string) string {
	if !p.colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// A cell is one field of a table.
type cell struct {
	text  string
	style style
}

// A table is rows under headings; columns are as wide as their widest cell.
type table struct {
	heading []string
	rows    [][]cell
}

// add appends a row of unstyled cells, made of anything that fmt can print.
func (t *table) add(fields ...any) {
	row := make([]cell, len(fields))
	for i, f := range fields {
		switch f := f.(type) {
		case cell:
			row[i] = f
		default:
			row[i] = cell{text: fmt.Sprint(f)}
		}
	}
	t.rows = append(t.rows, row)
}

// print writes t, aligned, with two spaces between columns and none at the end
// of a line. What cannot be printed is escaped: names and paths come from
// containers and must not drive the operator's terminal.
func (p *program) print(t *table) error {
	lines := make([][]cell, 0, len(t.rows)+1)
	if len(t.heading) > 0 {
		head := make([]cell, len(t.heading))
		for i, h := range t.heading {
			head[i] = cell{text: h, style: bold}
		}
		lines = append(lines, head)
	}
	for _, row := range t.rows {
		safe := make([]cell, len(row))
		for i, c := range row {
			safe[i] = cell{text: printable(c.text), style: c.style}
		}
		lines = append(lines, safe)
	}
	widths := columnWidths(lines)
	var b strings.Builder
	for _, line := range lines {
		p.writeLine(&b, line, widths)
	}
	_, err := io.WriteString(p.stdout, b.String())
	return err
}

// columnWidths returns the widest cell of each column, in characters.
func columnWidths(lines [][]cell) []int {
	var widths []int
	for _, line := range lines {
		for i, c := range line {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	return widths
}

// writeLine writes one line, each cell padded to its column's width.
func (p *program) writeLine(b *strings.Builder, line []cell, widths []int) {
	last := len(line) - 1
	for last >= 0 && line[last].text == "" {
		last--
	}
	for i, c := range line[:last+1] {
		b.WriteString(p.paint(c.style, c.text))
		if i < last {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(c.text))+2))
		}
	}
	b.WriteByte('\n')
}

// printable returns s with everything that is not a printable character
// escaped, as in a Go string.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !strconv.IsPrint(r):
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// printJSON writes v as one indented JSON document.
func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// plural returns "1 thing" or "2 things".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}
