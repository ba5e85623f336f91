package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/api"
)

// A clock is a time that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func TestProgressInLines(t *testing.T) {
	var out bytes.Buffer
	c := &clock{at: time.Unix(1000, 0)}
	view := (&program{stderr: &out, now: c.now}).newProgress(false)
	at := api.ScanProgress{FilesDone: 5, BytesDone: 2048}
	view.show(&at, 0) // too early
	c.at = c.at.Add(linePause)
	view.show(&at, 1)
	view.show(&at, 1) // too early again
	c.at = c.at.Add(linePause)
	view.show(&api.ScanProgress{Files: 10, FilesDone: 6, Layers: 3, LayersDone: 1, Cached: 2, Current: "\x1b[2J"}, 0)
	view.end()
	want := "assay: 5 files, 2KiB, 1 finding\nassay: 6 of 10 files, 0B, 1 of 3 layers, 2 known already, 0 findings\n"
	if out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestProgressAsABar(t *testing.T) {
	var out bytes.Buffer
	c := &clock{at: time.Unix(1000, 0)}
	view := (&program{stderr: &out, now: c.now, interactive: true}).newProgress(false)
	for done := range int64(20) {
		c.at = c.at.Add(barPause)
		at := api.ScanProgress{Files: 10, FilesDone: done, Current: "sha256:\x1b]0;evil\a"} // more than was counted
		if done < 2 {
			at.Files = 0
		}
		view.show(&at, 1)
	}
	view.end()
	got := out.String()
	for _, want := range []string{"1 finding", "5/10", "19/20", `\x1b]0;evil\a`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if strings.Contains(got, "\x1b]") || !strings.HasSuffix(got, "\r") {
		t.Errorf("printed %q", got)
	}
	n := out.Len()
	view.show(&api.ScanProgress{}, 0) // too early
	if out.Len() != n {
		t.Error("the bar does not pause")
	}
}

func TestNoProgress(t *testing.T) {
	var out bytes.Buffer
	c := &clock{}
	view := (&program{stderr: &out, now: c.now, interactive: true}).newProgress(true)
	c.at = time.Unix(1000, 0)
	view.show(&api.ScanProgress{}, 0)
	if view.end(); out.Len() > 0 {
		t.Errorf("printed %q", out.String())
	}
}

func TestShortened(t *testing.T) {
	for in, want := range map[string]string{"": "    ", "ab": "ab  ", "abcd": "abcd", "äbcdé": "…cdé"} {
		if got := shortened(in, 4); got != want {
			t.Errorf("shortened(%q) = %q, want %q", in, got, want)
		}
	}
}
