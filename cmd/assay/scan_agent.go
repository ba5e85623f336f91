package main

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

func (p *program) scanLayerCommand() *cli.Command {
	return &cli.Command{
		Name:      "layer",
		Usage:     "have the agent scan all files of an image layer",
		ArgsUsage: "DIGEST|DIR",
		Description: `Has the agent scan all files of the layer with this digest, or of the layer in
the directory DIR of a runtime's storage, with a tenant's stages. What has been
judged before is not scanned again. The verdicts are kept, so that the first open
in a container with this layer finds them. Ctrl-C ends the scan.

Exits with 1 if any file is malicious, or could not be scanned.

Examples:
  assay scan layer sha256:4f1c…
  assay scan layer /var/lib/containers/storage/overlay/8d3ac…/diff
  assay scan layer sha256:4f1c… -o json | jq .totals`,
		Flags:  scanFlags(),
		Action: p.scanLayer,
	}
}

func (p *program) scanImageCommand() *cli.Command {
	return &cli.Command{
		Name:      "image",
		Usage:     "have the agent scan all layers of an image",
		ArgsUsage: "NAME",
		Description: `Has the agent scan all files of all layers of the image with this name or id in
a runtime's storage, with a tenant's stages: before a container is started from
it, or anybody has it pulled from here. What has been judged before is not scanned
again, and verdicts are kept. Ctrl-C ends the scan.

Exits with 1 if any file is malicious, or could not be scanned.

Examples:
  assay scan image docker.io/library/nginx:1.27
  assay scan image --quiet --tenant payments localhost/shop:1 && podman run localhost/shop:1
  assay scan image -o json localhost/shop:1 | jq -r '.findings[].path'`,
		Flags:  scanFlags(),
		Action: p.scanImage,
	}
}

func (p *program) scanLayer(c *cli.Context) error {
	return p.scanByAgent(c, api.ScanLayer, "a DIGEST or DIR")
}

func (p *program) scanImage(c *cli.Context) error { return p.scanByAgent(c, api.ScanImage, "a NAME") }

// scanByAgent has the agent scan what it opens itself.
func (p *program) scanByAgent(c *cli.Context, kind, what string) error {
	args, err := operands(c, what, 1, 1)
	if err != nil {
		return err
	}
	name := args[0]
	if kind == api.ScanLayer && strings.ContainsRune(name, filepath.Separator) {
		if name, err = filepath.Abs(name); err != nil {
			return err
		}
	}
	ctx, stop := untilSignal(c)
	defer stop()
	r := p.newScan(c, kind, []string{name})
	err = newAgent(c).scan(ctx, api.ScanRequest{Kind: kind, Name: name, Tenant: c.String(flagTenant)}, r.note)
	return r.finish(err)
}

// scan has a layer or an image scanned and calls note for each line but a last
// one that says that the scan has failed, which is the error.
func (a *agent) scan(ctx context.Context, req api.ScanRequest, note func(*api.ScanLine)) error {
	for line, err := range a.client.Scan(ctx, req) {
		if err != nil {
			return agentFailure(err)
		}
		if f := line.Failed; f != nil {
			return &failure{code: exitFinding, err: &scanFailedError{f.Message}, remedy: f.Remedy}
		}
		note(&line)
	}
	return nil
}

// A scanFailedError is why the agent ended a scan early.
type scanFailedError struct{ why string }

func (e *scanFailedError) Error() string { return "the scan ended early: " + e.why }

func (p *program) pauseCommand() *cli.Command {
	return &cli.Command{
		Name:  "pause",
		Usage: "stop scanning ahead of the first open, until resumed",
		Description: `Has the agent stop scanning layers that nobody has opened files of yet, for
example while the machine is needed for something else. Files are scanned when
they are opened, as ever. It lasts until "assay scan resume" or a restart of the
agent; "assay status" shows it.

Examples:
  assay scan pause
  assay scan pause -o json | jq .layersQueued`,
		Action: p.pauseAhead,
	}
}

func (p *program) resumeCommand() *cli.Command {
	return &cli.Command{
		Name:  "resume",
		Usage: "go on with scanning ahead of the first open",
		Description: `Undoes "assay scan pause".

Examples:
  assay scan resume`,
		Action: p.resumeAhead,
	}
}

func (p *program) pauseAhead(c *cli.Context) error { return p.setAhead(c, true) }

func (p *program) resumeAhead(c *cli.Context) error { return p.setAhead(c, false) }

// setAhead pauses or resumes, and shows what this led to.
func (p *program) setAhead(c *cli.Context, paused bool) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	st, err := newAgent(c).ahead(c.Context, paused)
	if err != nil {
		return err
	}
	if asJSON(c) {
		return p.printJSON(st)
	}
	t := &table{}
	t.add("Scans ahead", p.aheadSummary(&st))
	return p.print(t)
}
