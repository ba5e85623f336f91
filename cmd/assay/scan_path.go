package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

// maxJobs bounds --jobs: more would fill the tenant's queue.
const maxJobs = 256

func (p *program) scanPathCommand() *cli.Command {
	return &cli.Command{
		Name:      "path",
		Usage:     "scan files and whole directories of this machine",
		ArgsUsage: "PATH [PATH...]",
		Description: `Opens each regular file at and below each PATH and passes the descriptor to the
agent, which scans it with a tenant's stages, as if a container had opened it.
Symbolic links are not followed, and what is mounted below a PATH is left out
unless --cross is given. The agent opens nothing itself.

Exits with 1 if any file is malicious, or could not be scanned.

Examples:
  assay scan path /srv/uploads
  assay scan path --jobs 8 --cross /var/lib/containers
  assay scan path --tenant payments --allow-unscannable ./release *.jar
  assay scan path -o json -q /srv | jq -r '.findings[].path'`,
		Flags: scanFlags(
			&cli.IntFlag{Name: flagJobs, Aliases: []string{"j"}, Value: 2, Usage: "have `N` files scanned at once"},
			&cli.BoolFlag{Name: flagCross, DisableDefaultText: true, Usage: "also scan other filesystems that are mounted below"},
		),
		Action: p.scanPath,
	}
}

func (p *program) scanPath(c *cli.Context) error {
	paths, err := operands(c, "a PATH", 1, -1)
	if err != nil {
		return err
	}
	if n := c.Int(flagJobs); n < 1 || n > maxJobs {
		return usage("use a number from 1 to 256", "--%s %d makes no sense", flagJobs, n)
	}
	ctx, stop := untilSignal(c)
	defer stop()
	a := newAgent(c)
	if err := a.knowsTenant(ctx, c.String(flagTenant)); err != nil {
		return err
	}
	places := make([]place, 0, len(paths))
	for _, path := range paths {
		at, err := openPlace(path)
		if err != nil {
			return err
		}
		places = append(places, at)
	}
	s := &pathScan{scanRun: p.newScan(c, "path", paths), agent: a, tenant: c.String(flagTenant), cross: c.Bool(flagCross)}
	err = s.scan(ctx, places, c.Int(flagJobs))
	if err == nil {
		s.complete()
	}
	return s.finish(err)
}

// knowsTenant refuses a tenant that the agent would refuse for each file anew.
func (a *agent) knowsTenant(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	st, err := a.status(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range st.Tenants {
		if n.Name == name {
			return nil
		}
		names = append(names, n.Name)
	}
	return usage("the tenants are: "+joinWords(names), "there is no tenant %q", name)
}

// A pathScan has the agent scan files that this program opens.
type pathScan struct {
	*scanRun

	agent  *agent
	tenant string
	cross  bool
}

// scan walks the places and has jobs files scanned at once. The error is that
// of the agent or of ctx.
func (s *pathScan) scan(ctx context.Context, places []place, jobs int) error {
	interrupted := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	files := make(chan *os.File)
	var workers sync.WaitGroup
	for range jobs {
		workers.Go(func() {
			for file := range files {
				if err := s.check(ctx, file); err != nil {
					cancel(err)
				}
			}
		})
	}
	w := walker{cross: s.cross, failed: s.fail, found: func(file *os.File) error {
		select {
		case files <- file:
			return nil
		case <-ctx.Done():
			return errors.Join(ctx.Err(), file.Close())
		}
	}}
	var err error
	for _, at := range places {
		err = cmp.Or(err, w.walk(ctx, at)) // closes each
	}
	close(files)
	workers.Wait()
	if err := interrupted.Err(); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// check has one file scanned and closes it. An error means that the next file
// would fare no better.
func (s *pathScan) check(ctx context.Context, file *os.File) error {
	defer func() { _ = file.Close() }() // only read from
	result, err := s.agent.check(ctx, file, s.tenant)
	var f *failure
	switch {
	case err == nil:
		s.checked(&result)
	case errors.As(err, &f) && f.code == exitUsage:
		s.fail(file.Name(), err)
	default:
		return err
	}
	return nil
}

// fail notes a file that was not scanned.
func (s *pathScan) fail(path string, err error) {
	e := api.ScanError{Path: path, Error: err.Error()}
	if f, ok := errors.AsType[*failure](err); ok {
		e.Remedy = f.remedy
	}
	s.note(&api.ScanLine{Error: &e})
}

// checked notes what the agent said of a file.
func (s *pathScan) checked(r *api.CheckResult) {
	s.note(lineOf(r))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at.FilesDone++
	s.at.BytesDone += r.Size
	s.at.Current = r.Path
	s.view.show(&s.at, len(s.doc.Findings))
}

// lineOf returns what a verdict is in a scan's account.
func lineOf(r *api.CheckResult) *api.ScanLine {
	f := &api.ScanFinding{Path: r.Path, Size: r.Size, Verdict: r.Verdict, Detail: r.Detail, Scanners: r.Scanners}
	switch {
	case r.Verdict == "malicious":
		return &api.ScanLine{Finding: f}
	case r.Verdict == "clean":
		return &api.ScanLine{}
	case r.Verdict == "unscannable", r.Reason == audit.ReasonTooLarge:
		return &api.ScanLine{Unscannable: f}
	}
	why := cmp.Or(explain(r.Scanners, r.Detail), "it was not scanned")
	return &api.ScanLine{Error: &api.ScanError{Path: r.Path, Error: r.Reason.String() + ": " + why}}
}

// complete ends the account of a scan that saw everything.
func (s *pathScan) complete() {
	s.mu.Lock()
	totals := s.countedTotals()
	s.mu.Unlock()
	s.note(&api.ScanLine{Done: &totals})
}
