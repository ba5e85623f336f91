package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

func (p *program) checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "ask the agent's scanners about files",
		ArgsUsage: "FILE|- [FILE...]",
		Description: `Opens each FILE, or takes standard input for "-", and passes the descriptor to
the agent, which scans it with a tenant's stages, as if a container had opened
it. The agent opens nothing itself: a file that you may not read is not read.
Exits with 1 if any file is malicious or would be denied for another reason.

Examples:
  assay check ./installer.run
  curl -s https://example.org/tool | assay check -
  assay check --tenant payments *.jar
  assay check -o json report.pdf | jq -r '.results[].verdict'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: flagTenant, Usage: "scan as the tenant `NAME` (default: the one that matches everything)"},
		},
		Action: p.check,
	}
}

// A checkDocument is the output of "assay check -o json".
type checkDocument struct {
	Results []api.CheckResult `json:"results"` // in the order of the arguments
	Errors  []checkError      `json:"errors"`  // files that were not scanned
}

// A checkError says why a file was not scanned.
type checkError struct {
	Path   string `json:"path"`
	Error  string `json:"error"`
	Remedy string `json:"remedy,omitempty"`
}

func (p *program) check(c *cli.Context) error {
	files, err := operands(c, "a FILE, or - for standard input", 1, -1)
	if err != nil {
		return err
	}
	if i := slices.Index(files, stdinName); i >= 0 && slices.Contains(files[i+1:], stdinName) {
		return usage("name - once", "standard input can be read only once")
	}
	doc := checkDocument{Results: []api.CheckResult{}, Errors: []checkError{}}
	a := newAgent(c)
	for _, path := range files {
		result, err := p.checkFile(c, a, path)
		var f *failure
		switch {
		case err == nil:
			doc.Results = append(doc.Results, result)
		case errors.As(err, &f) && f.code == exitUsage:
			doc.Errors = append(doc.Errors, checkError{Path: path, Error: f.Error(), Remedy: f.remedy})
		default:
			return err // the agent has gone, or something that the next file would meet too
		}
	}
	if err := p.printCheck(asJSON(c), &doc); err != nil {
		return err
	}
	return doc.outcome()
}

// outcome is the exit of the command: a finding counts more than a file that
// could not be scanned.
func (d *checkDocument) outcome() error {
	if slices.ContainsFunc(d.Results, found) {
		return errFinding
	}
	if len(d.Errors) > 0 {
		return errReported
	}
	return nil
}

// found reports whether r is something to worry about. A malicious file is, even
// where the tenant only audits.
func found(r api.CheckResult) bool { return r.Verdict == "malicious" || r.Decision != "allow" }

// checkFile has the agent scan one file.
func (p *program) checkFile(c *cli.Context, a *agent, path string) (api.CheckResult, error) {
	open := openFile
	if path == stdinName {
		open = func(string) (*os.File, error) { return openStdin(p.stdin) }
	}
	file, err := open(path)
	if err != nil {
		return api.CheckResult{}, err
	}
	defer func() { _ = file.Close() }() // only read from
	return a.check(c.Context, file, c.String(flagTenant))
}

// printCheck shows what the agent said.
func (p *program) printCheck(json bool, doc *checkDocument) error {
	if json {
		return p.printJSON(doc)
	}
	t := &table{heading: []string{"FILE", "VERDICT", "DECISION", "TENANT", "REASON", "SIZE", "TIME", "SCANNERS"}}
	for _, r := range doc.Results {
		s := green
		if found(r) {
			s = red
		}
		t.add(r.Path, cell{cmp.Or(r.Verdict, "-"), s}, cell{r.Decision, s}, r.Tenant, r.Reason,
			units.BytesSize(float64(r.Size)), fmt.Sprintf("%.1f ms", float64(r.Micros)/1000), findings(r.Scanners, r.Detail))
	}
	if len(t.rows) > 0 {
		if err := p.print(t); err != nil {
			return err
		}
	}
	for _, e := range doc.Errors {
		p.complain(errors.New(e.Error), e.Remedy)
	}
	return nil
}

// findings says in a few words which scanners were asked and what they found.
func findings(scanners []audit.Scanner, detail string) string {
	if why := explain(scanners, detail); why != "" {
		return why
	}
	names := make([]string, len(scanners))
	for i, s := range scanners {
		names[i] = s.Name
	}
	return joinWords(names)
}
