package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

// The flags of events.
const (
	flagFollow    = "follow"
	flagTenant    = "tenant"
	flagContainer = "container"
	flagDecision  = "decision"
	flagOp        = "op"
	flagSince     = "since"
	flagLast      = "last"
)

// decisions returns the values of --decision.
func decisions() []string { return []string{"allow", "deny"} }

func (p *program) eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show what was allowed and denied, and why",
		Description: `Shows the event records that the agent keeps in memory, oldest first, one line
each; with --follow also those to come, until interrupted. With -o json, each
line is one JSON object, as in the record file.

A record with the operation "dirty" is no request and has no decision: somebody
opened a file for writing that was marked clean, so its next open is scanned.
Neither is "scan": malware in an image layer, found before anybody opened it.
"absence" sums up a container's opens that were answered while there was no agent.
"start" is a container that could not be guarded, and whether it may start; "late"
one that was running before it was guarded: what it opened before was not scanned.

Records overwritten or lost before they could be shown are reported on stderr.

Examples:
  assay events -n 20
  assay events --follow --decision deny
  assay events --op dirty           which clean files were written to
  assay events --container web -o json | jq -r .path
  assay events --follow -n 0        only what happens from now on`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: flagFollow, Aliases: []string{"f"}, DisableDefaultText: true, Usage: "wait for more records"},
			&cli.StringFlag{Name: flagTenant, Usage: "only records of the tenant `NAME`"},
			&cli.StringFlag{Name: flagContainer, Usage: "only records of the container with this `NAME`, id or beginning of its id"},
			&cli.StringFlag{Name: flagDecision, Usage: "only records with this `DECISION`: allow or deny"},
			&cli.StringFlag{Name: flagOp, Usage: "only records of this `OPERATION`: open, exec, dirty, scan, absence, start or late"},
			&cli.Uint64Flag{Name: flagSince, DefaultText: "the oldest in memory", Usage: "begin at the record with sequence number `SEQ`"},
			&cli.IntFlag{Name: flagLast, Aliases: []string{"n"}, Value: -1, DefaultText: "all", Usage: "only the last `N` of the records so far"},
		},
		Action: p.events,
	}
}

func (p *program) events(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	filter := api.EventFilter{
		Follow: c.Bool(flagFollow), Since: c.Uint64(flagSince),
		Tenant: c.String(flagTenant), Container: c.String(flagContainer), Decision: c.String(flagDecision),
		Op: c.String(flagOp),
	}
	if filter.Decision != "" && !slices.Contains(decisions(), filter.Decision) {
		return usage("use --decision allow or --decision deny", "unknown decision %q", filter.Decision)
	}
	if filter.Op != "" && !slices.Contains(audit.Operations(), filter.Op) {
		return usage("use --op "+strings.Join(audit.Operations(), ", --op "), "unknown operation %q", filter.Op)
	}
	if c.IsSet(flagLast) && c.Int(flagLast) < 0 {
		return usage("use -n 0 for none, or leave -n out for all", "%d is no number of records", c.Int(flagLast))
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	v := &eventView{p: p, agent: newAgent(c), json: asJSON(c)}
	err := v.show(ctx, filter, c.Int(flagLast))
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // interrupted: the clean way to end --follow
	}
	return err
}

// An eventView prints records as they come in.
type eventView struct {
	p     *program
	agent *agent
	json  bool
	shown bool // the heading was printed
	lines bytes.Buffer
}

// show prints the last n records that match (n < 0: all of them), and then, if
// the filter says so, those to come until ctx is done.
func (v *eventView) show(ctx context.Context, filter api.EventFilter, n int) error {
	if n >= 0 {
		next, err := v.backlog(ctx, filter, n)
		if err != nil || !filter.Follow {
			return err
		}
		filter.Since = next
	}
	return v.agent.events(ctx, filter, func(r *audit.Record, lost uint64) error {
		v.noteLost(lost)
		return v.print(r)
	})
}

// backlog prints the last n matching records that the agent has now, and returns
// where to go on from there.
func (v *eventView) backlog(ctx context.Context, filter api.EventFilter, n int) (next uint64, err error) {
	if n == 0 && filter.Follow {
		return audit.FromNow, nil
	}
	filter.Follow = false
	next = filter.Since
	var last []audit.Record
	err = v.agent.events(ctx, filter, func(r *audit.Record, lost uint64) error {
		v.noteLost(lost)
		next = r.Seq + 1
		last = append(last, *r)
		last = last[max(0, len(last)-n):]
		return nil
	})
	for i := 0; i < len(last) && err == nil; i++ {
		err = v.print(&last[i])
	}
	return next, err
}

// noteLost says on stderr that records are missing.
func (v *eventView) noteLost(lost uint64) {
	if lost > 0 {
		v.p.complain(fmt.Errorf("%d records were overwritten before they could be shown", lost),
			"the record file has them, if one is configured; a program that reads faster loses none")
	}
}

// print shows one record.
func (v *eventView) print(r *audit.Record) error {
	if v.json {
		v.lines.Reset()
		if err := r.AppendLine(&v.lines); err != nil {
			return err
		}
		_, err := v.p.stdout.Write(v.lines.Bytes())
		return err
	}
	if !v.shown {
		v.shown = true
		if _, err := io.WriteString(v.p.stdout, v.p.paint(bold, eventHeading())+"\n"); err != nil {
			return err
		}
	}
	_, err := io.WriteString(v.p.stdout, v.line(r)+"\n")
	return err
}

// eventFormat are the columns of a record. They have fixed widths, since lines
// are printed before the next record is known.
const eventFormat = "%-6s  %-19s  %s  %-5s  %-12s  %-14s  %-12s  %s"

func eventHeading() string {
	return fmt.Sprintf(eventFormat, "SEQ", "TIME", fmt.Sprintf("%-8s", "DECISION"), "OP", "TENANT", "CONTAINER", "REASON", "PATH")
}

// line returns a record's line.
func (v *eventView) line(r *audit.Record) string {
	decision := v.p.paint(eventStyle(r), fmt.Sprintf("%-8s", printable(cmp.Or(r.Decision, "-"))))
	line := fmt.Sprintf(eventFormat, fmt.Sprint(r.Seq), r.Time.Local().Format(time.DateTime), decision, printable(r.Op),
		printable(r.Tenant), printable(cmp.Or(r.Container.Name, shortID(r.Container.ID), "-")),
		eventReason(r), printable(r.Path))
	why := explain(r.Scanners, r.Detail)
	if why == "" && r.Op == audit.OpDirty {
		why = "opened for writing: no longer marked clean"
	}
	if why != "" {
		line += "  (" + printable(why) + ")"
	}
	return line
}

// eventStyle returns the colour of a record's decision.
func eventStyle(r *audit.Record) style {
	switch {
	case r.Op == audit.OpDirty:
		return plain
	case r.Op == audit.OpLate:
		return yellow
	case r.Decision != "allow":
		return red
	case r.Reason.Unscanned():
		return yellow
	default:
		return green
	}
}

// eventReason returns why a record has its decision; one that decides nothing
// has no reason.
func eventReason(r *audit.Record) string {
	if r.Op == audit.OpDirty {
		return "-"
	}
	return r.Reason.String()
}

// explain says in a few words what the scanners found, or else what went wrong.
func explain(scanners []audit.Scanner, detail string) string {
	var parts []string
	for _, s := range scanners {
		switch {
		case s.Signature != "":
			parts = append(parts, s.Name+": "+s.Signature)
		case s.Detail != "":
			parts = append(parts, s.Name+": "+s.Detail)
		}
	}
	if len(parts) == 0 {
		return detail
	}
	return strings.Join(parts, "; ")
}

// agentStatus asks the agent for its status.
func agentStatus(c *cli.Context) (api.Status, error) { return newAgent(c).status(c.Context) }
