package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

// The flags of scan.
const (
	flagAllowUnscannable = "allow-unscannable"
	flagCross            = "cross"
	flagJobs             = "jobs"
	flagQuiet            = "quiet"
)

// maxReported is how many files that were not scanned are listed.
const maxReported = 20

func (p *program) scanCommand() *cli.Command {
	return &cli.Command{
		Name:  "scan",
		Usage: "scan files, layers and images before anybody opens them",
		Description: `Has the agent scan what nobody has opened yet: files and directories of this
machine, an image layer, or all layers of an image; and pauses or resumes what
the agent scans by itself ahead of the first open.

Examples:
  assay scan path /srv/uploads
  assay scan image docker.io/library/nginx:1.27
  assay scan layer sha256:4f1c… --tenant payments
  assay scan pause`,
		Subcommands: []*cli.Command{
			p.scanPathCommand(), p.scanLayerCommand(), p.scanImageCommand(), p.pauseCommand(), p.resumeCommand(),
		},
	}
}

// scanFlags returns the flags of every scan.
func scanFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: flagTenant, Usage: "scan as the tenant `NAME` (default: the one that matches everything)"},
		&cli.BoolFlag{Name: flagAllowUnscannable, DisableDefaultText: true, Usage: "exit with 0 although something could not be scanned"},
		&cli.BoolFlag{Name: flagQuiet, Aliases: []string{"q"}, DisableDefaultText: true, Usage: "show no progress on stderr"},
	)
}

// A scanDocument is the output of a scan with -o json.
type scanDocument struct {
	Kind        string            `json:"kind"` // path, layer, image
	Names       []string          `json:"names"`
	Complete    bool              `json:"complete"` // it ran to its end
	Totals      api.ScanTotals    `json:"totals"`
	Findings    []api.ScanFinding `json:"findings"`    // malicious files
	Unscannable []api.ScanFinding `json:"unscannable"` // files that scanners could not judge
	Errors      []api.ScanError   `json:"errors"`      // what was not scanned
}

// A scanRun is one scan: what has come of it so far, and how it is shown. Its
// methods may be called by several goroutines.
type scanRun struct {
	p       *program
	began   time.Time
	json    bool
	lenient bool // what cannot be scanned is no finding

	mu   sync.Mutex
	view progress
	at   api.ScanProgress
	doc  scanDocument
}

func (p *program) newScan(c *cli.Context, kind string, names []string) *scanRun {
	return &scanRun{
		p: p, began: p.now(), json: asJSON(c), lenient: c.Bool(flagAllowUnscannable), view: p.newProgress(c.Bool(flagQuiet)),
		doc: scanDocument{
			Kind: kind, Names: names, Findings: []api.ScanFinding{}, Unscannable: []api.ScanFinding{}, Errors: []api.ScanError{},
		},
	}
}

// note takes one line of a scan's account.
func (r *scanRun) note(line *api.ScanLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case line.Progress != nil:
		r.at = *line.Progress
	case line.Finding != nil:
		r.doc.Findings = append(r.doc.Findings, *line.Finding)
	case line.Unscannable != nil:
		r.doc.Unscannable = append(r.doc.Unscannable, *line.Unscannable)
	case line.Error != nil:
		r.doc.Errors = append(r.doc.Errors, *line.Error)
	case line.Done != nil:
		r.doc.Totals, r.doc.Complete = *line.Done, true
		return
	}
	r.view.show(&r.at, len(r.doc.Findings))
}

// finish shows what came of the scan, which ended with err, and returns the exit
// of the command.
func (r *scanRun) finish(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view.end()
	if !r.doc.Complete {
		r.doc.Totals = r.countedTotals()
		if empty := r.doc.Totals; err != nil && empty == (api.ScanTotals{Micros: empty.Micros}) {
			return interrupted(err)
		}
	}
	if printErr := r.print(); printErr != nil {
		return errors.Join(err, printErr)
	}
	if err != nil {
		return interrupted(err)
	}
	return r.outcome()
}

// countedTotals is how far a scan came that did not end by itself.
func (r *scanRun) countedTotals() api.ScanTotals {
	return api.ScanTotals{
		Layers: r.at.LayersDone, Files: r.at.FilesDone, Bytes: r.at.BytesDone, Cached: r.at.Cached,
		Malicious: int64(len(r.doc.Findings)), Unscannable: int64(len(r.doc.Unscannable)), Errors: int64(len(r.doc.Errors)),
		Micros: r.p.now().Sub(r.began).Microseconds(),
	}
}

// interrupted says what it means that a scan was cancelled.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return &failure{code: exitFinding, err: errors.New("interrupted: not everything was scanned"), remedy: "scan again; what the agent keeps a verdict of is quick"}
	}
	return err
}

// outcome is the exit of a complete scan: a finding counts most.
func (r *scanRun) outcome() error {
	n := r.doc.Totals.Unscannable + r.doc.Totals.Errors
	switch {
	case r.doc.Totals.Malicious > 0:
		return errFinding
	case n > 0 && !r.lenient:
		return &failure{
			code: exitFinding, err: fmt.Errorf("%s could not be scanned, so nothing is known of them", plural(int(n), "file")),
			remedy: "look into the reasons above, or accept them with --" + flagAllowUnscannable,
		}
	}
	return nil
}

// print shows the document.
func (r *scanRun) print() error {
	if r.json {
		return r.p.printJSON(r.doc)
	}
	t := &table{heading: []string{"FILE", "VERDICT", "SIZE", "SCANNERS", "LAYER"}}
	for _, list := range []struct {
		files []api.ScanFinding
		style style
	}{{r.doc.Findings, red}, {r.doc.Unscannable, yellow}} {
		for _, f := range list.files {
			t.add(f.Path, cell{f.Verdict, list.style}, units.BytesSize(float64(f.Size)), findings(f.Scanners, f.Detail), f.Layer)
		}
	}
	if err := r.p.printSections(t); err != nil {
		return err
	}
	if len(t.rows) > 0 {
		if _, err := io.WriteString(r.p.stdout, "\n"); err != nil {
			return err
		}
	}
	r.complainOfErrors()
	_, err := fmt.Fprintln(r.p.stdout, scanSummary(&r.doc))
	return err
}

// complainOfErrors lists what was not scanned, within bounds.
func (r *scanRun) complainOfErrors() {
	for _, e := range r.doc.Errors[:min(maxReported, len(r.doc.Errors))] {
		where := cmp.Or(e.Path, e.Layer)
		if e.Path != "" && e.Layer != "" {
			where += " of " + e.Layer
		}
		r.p.complain(fmt.Errorf("%s: %s", where, e.Error), e.Remedy)
	}
	if left := len(r.doc.Errors) - maxReported; left > 0 {
		r.p.complain(fmt.Errorf("%d more were not scanned", left), "-o json lists all")
	}
}

// scanSummary is a scan in a line.
func scanSummary(d *scanDocument) string {
	n := &d.Totals
	line := fmt.Sprintf("%s, %s in %s", plural(int(n.Files), "file"), units.BytesSize(float64(n.Bytes)),
		(time.Duration(n.Micros) * time.Microsecond).Round(100*time.Millisecond))
	if n.Layers > 0 {
		line += ", " + plural(n.Layers, "layer")
	}
	if n.Cached > 0 {
		line += fmt.Sprintf(", %d known already", n.Cached)
	}
	line += fmt.Sprintf(": %d malicious, %d unscannable, %d not scanned", n.Malicious, n.Unscannable, n.Errors)
	if !d.Complete {
		line += " (unfinished)"
	}
	return line
}

// untilSignal returns the command's context, which ends with Ctrl-C or SIGTERM.
func untilSignal(c *cli.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
}
