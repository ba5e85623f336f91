package main

import (
	"strings"
	"testing"
)

// feed runs events through a gate and returns it with what it printed.
func feed(t *testing.T, lines ...string) (*gate, string) {
	t.Helper()
	var out strings.Builder
	g := newGate(&out)
	if err := g.read(strings.NewReader(strings.Join(lines, "\n") + "\n")); err != nil {
		t.Fatal(err)
	}
	return g, out.String()
}

const (
	passA    = `{"Action":"pass","Package":"p","Test":"TestA"}`
	passPkg  = `{"Action":"pass","Package":"p"}`
	okLine   = `{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}`
	skipWhy  = `{"Action":"output","Package":"p","Test":"TestB/x","Output":"    b_test.go:1: no crun\n"}`
	skipB    = `{"Action":"skip","Package":"p","Test":"TestB/x"}`
	failWhy  = `{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:1: wrong\n"}`
	failC    = `{"Action":"fail","Package":"p","Test":"TestC"}`
	panicked = `{"Action":"output","Package":"p","Test":"TestD","Output":"panic: boom\n"}`
	failPkg  = `{"Action":"fail","Package":"p"}`
	noTests  = `{"Action":"skip","Package":"q"}`
)

func TestGateRefuses(t *testing.T) {
	tests := []struct {
		name    string
		events  []string
		allow   string
		refused string // a part of the only refusal; "" for none
	}{
		{"all passed", []string{passA, passPkg}, "", ""},
		{"package without tests", []string{passA, passPkg, noTests}, "", ""},
		{"nothing ran", []string{noTests}, "", "no test ran"},
		{"a skip", []string{passA, skipWhy, skipB, passPkg}, "", "no crun"},
		{"a skip named in full", []string{passA, skipB}, "TestB/x", ""},
		{"a skip named by its parent", []string{passA, skipB}, "TestZ, TestB", ""},
		{"a skip named by a pattern", []string{passA, skipB}, "Test?", ""},
		{"another test named", []string{passA, skipB}, "TestBB", "TestB/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, _ := feed(t, tt.events...)
			allowed, err := parsePatterns(tt.allow)
			if err != nil {
				t.Fatal(err)
			}
			got := g.refusals(allowed)
			if tt.refused == "" && len(got) != 0 {
				t.Fatalf("refused: %q", got)
			}
			if tt.refused != "" && (len(got) != 1 || !strings.Contains(got[0], tt.refused)) {
				t.Fatalf("refusals %q, want one with %q", got, tt.refused)
			}
		})
	}
}

func TestGatePrints(t *testing.T) {
	g, out := feed(t, passA, okLine, passPkg, "plain line", failWhy, failC, panicked, failPkg)
	for _, want := range []string{"ok  \tp\t0.1s\n", "plain line\n", "c_test.go:1: wrong\n", "panic: boom\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if g.passed != 1 || len(g.failed) != 1 {
		t.Errorf("%d passed and %d failed, want 1 and 1", g.passed, len(g.failed))
	}
}

func TestBadPattern(t *testing.T) {
	if _, err := parsePatterns("Test["); err == nil {
		t.Fatal("a malformed pattern was accepted")
	}
}
