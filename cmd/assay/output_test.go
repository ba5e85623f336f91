package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain /bin/sh":         "plain /bin/sh",
		"Grüße, 世界":             "Grüße, 世界",
		"\x1b[2J":               `\x1b[2J`,
		"a\nb\tc\r":             `a\nb\tc\r`,
		"\x9b31m":               `\x9b31m`,
		"\u009b31m":             `\u009b31m`,
		"right\u202eto left":    `right\u202eto left`,
		"bad \xff utf-8":        `bad \xff utf-8`,
		"quote ' and \" and \\": "quote ' and \" and \\",
		"nul \x00 end":          `nul \x00 end`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is printed as %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := &table{heading: []string{"NAME", "N", "LAST"}}
	tab.add("x", 12345, "end")
	tab.add("größer", 1, "")
	tab.add("\x1b[31mred", 0, cell{"no", red})
	var out bytes.Buffer
	p := &program{stdout: &out}
	if err := p.print(tab); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`NAME         N      LAST`,
		`x            12345  end`,
		`größer       1`,
		`\x1b[31mred  0      no`,
		``,
	}, "\n")
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	p.colour = true
	if err := p.print(tab); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "\x1b[31mno\x1b[0m") || strings.Contains(got, "\x1b[31mred") {
		t.Errorf("in colour: %q", got)
	}
}

func TestWantsColour(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for name, tt := range map[string]struct {
		out  *os.File
		env  map[string]string
		want bool
	}{
		"terminal":           {terminal, nil, true},
		"file":               {file, nil, false},
		"terminal, NO_COLOR": {terminal, map[string]string{"NO_COLOR": "1"}, false},
		"terminal, dumb":     {terminal, map[string]string{"TERM": "dumb"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := wantsColour(tt.out, func(key string) string { return tt.env[key] }); got != tt.want {
				t.Errorf("colour %v, want %v", got, tt.want)
			}
		})
	}
}

func TestClosest(t *testing.T) {
	names := []string{"status", "doctor", "events", "check"}
	for word, want := range map[string]string{
		"statsu": "status", "evnts": "events", "chek": "check", "docter": "doctor", "frobnicate": "", "x": "",
	} {
		if got := closest(word, names); got != want {
			t.Errorf("closest to %q is %q, want %q", word, got, want)
		}
	}
}
