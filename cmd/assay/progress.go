package main

import (
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/schollz/progressbar/v3"

	"github.com/assay-project/assay/internal/api"
)

const (
	// barPause is the time between two changes of a progress bar, linePause
	// that between two lines of progress.
	barPause  = 100 * time.Millisecond
	linePause = 10 * time.Second
	// barText is how much of a name stands beside a bar.
	barText = 32
)

// A progress shows how far a scan is. Its methods are for one goroutine at a time.
type progress interface {
	show(at *api.ScanProgress, findings int)
	end()
}

// newProgress returns what suits stderr: a bar on a terminal, lines elsewhere,
// and nothing at all if nobody wants it.
func (p *program) newProgress(quiet bool) progress {
	switch {
	case quiet:
		return noProgress{}
	case p.interactive:
		return &barProgress{p: p}
	default:
		return &lineProgress{p: p, next: p.now().Add(linePause)}
	}
}

type noProgress struct{}

func (noProgress) show(*api.ScanProgress, int) {}
func (noProgress) end()                        {}

// A lineProgress writes a line now and then.
type lineProgress struct {
	p    *program
	next time.Time
}

func (l *lineProgress) show(at *api.ScanProgress, findings int) {
	if now := l.p.now(); !now.Before(l.next) {
		l.next = now.Add(linePause)
		_, _ = fmt.Fprintf(l.p.stderr, "assay: %s\n", progressLine(at, findings))
	}
}

func (l *lineProgress) end() {}

// progressLine says how far a scan is.
func progressLine(at *api.ScanProgress, findings int) string {
	line := fmt.Sprintf("%d files", at.FilesDone)
	if at.Files > 0 {
		line = fmt.Sprintf("%d of %d files", at.FilesDone, at.Files)
	}
	line += ", " + units.BytesSize(float64(at.BytesDone))
	if at.Layers > 0 {
		line += fmt.Sprintf(", %d of %d layers", at.LayersDone, at.Layers)
	}
	if at.Cached > 0 {
		line += fmt.Sprintf(", %d known already", at.Cached)
	}
	return line + ", " + plural(findings, "finding")
}

// A barProgress is a bar, or a counter while nobody knows how much there is.
type barProgress struct {
	p    *program
	bar  *progressbar.ProgressBar
	next time.Time
}

func (b *barProgress) show(at *api.ScanProgress, findings int) {
	now := b.p.now()
	if now.Before(b.next) {
		return
	}
	b.next = now.Add(barPause)
	if b.bar == nil {
		b.bar = newBar(b.p.stderr)
	}
	if at.Files > 0 {
		b.bar.ChangeMax64(max(at.Files, at.FilesDone+1)) // full only at the end: more may be counted
	}
	b.bar.Describe(fmt.Sprintf("%s, %s", plural(findings, "finding"), shortened(printable(at.Current), barText)))
	_ = b.bar.Set64(at.FilesDone) // stderr that cannot be written is no reason to stop
}

func newBar(to io.Writer) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(to), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish(),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("files"),
		progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionSetRenderBlankState(false),
		progressbar.OptionSetSpinnerChangeInterval(0), // which would be a goroutine that outlives the bar
	)
}

func (b *barProgress) end() {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}

// shortened returns the end of a name, which tells more than its beginning, in
// exactly n characters.
func shortened(name string, n int) string {
	runes := []rune(name)
	if len(runes) > n {
		return "…" + string(runes[len(runes)-n+1:])
	}
	return fmt.Sprintf("%-*s", n, name)
}
