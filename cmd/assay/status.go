package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what the agent guards, per tenant, container and scanner",
		Description: `Shows the agent's own account of itself: its tenants with their answers, the
containers it guards, its scanners, the verdicts it keeps and the kernel marks on
clean files, what it scans ahead of the first open, the event records, the keeper
that holds the containers while the agent is away, and what came of the last such
absence. Exits with 1 if the agent calls itself unhealthy, and says why.

"Unscanned" counts files that were allowed although no scanner called them
clean; the table of reasons says why.

Examples:
  assay status
  assay status -o json | jq '.containers[].id'
  assay status -o json | jq .cache.hitRate
  assay status -o json | jq '.containers[] | select(.kept | not)'
  watch assay status`,
		Action: p.status,
	}
}

func (p *program) status(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	st, err := agentStatus(c)
	if err != nil {
		return err
	}
	if asJSON(c) {
		err = p.printJSON(st)
	} else {
		err = p.printStatus(&st)
	}
	if err == nil && !st.Healthy {
		return errFinding
	}
	return err
}

// printStatus writes the tables of st, one below the other.
func (p *program) printStatus(st *api.Status) error {
	return p.printSections(p.agentTable(st), tenantTable(st), reasonTable(st), p.containerTable(st), scannerTable(st))
}

// printSections writes tables that have rows, one below the other.
func (p *program) printSections(sections ...*table) error {
	printed := false
	for _, section := range sections {
		if len(section.rows) == 0 {
			continue
		}
		if printed {
			if _, err := io.WriteString(p.stdout, "\n"); err != nil {
				return err
			}
		}
		if err := p.print(section); err != nil {
			return err
		}
		printed = true
	}
	return nil
}

// agentTable describes the agent itself.
func (p *program) agentTable(st *api.Status) *table {
	t := &table{}
	health := cell{text: "healthy", style: green}
	if !st.Healthy {
		health = cell{text: "unhealthy", style: red}
	}
	t.add("Agent", health)
	for _, problem := range st.Problems {
		t.add("Problem", cell{text: problem, style: red})
	}
	t.add("Version", st.Version)
	t.add("Process", fmt.Sprintf("pid %d, up %s, %s", st.PID, p.since(st.Started), plural(st.Readers, "reader thread")))
	t.add("Configuration", configuration(st))
	if st.ReloadErr != "" {
		t.add("Reload", cell{text: "failed, nothing changed: " + st.ReloadErr, style: yellow})
	}
	t.add("Records", records(&st.Records))
	t.add("Verdicts", cacheSummary(&st.Cache))
	addStore(t, &st.Store)
	t.add("Kernel marks", marksSummary(&st.Marks))
	t.add("Events", eventsSummary(&st.Events))
	t.add("Descriptors", descriptorsSummary(&st.Descriptors))
	t.add("Scans ahead", p.aheadSummary(&st.Ahead))
	t.add("Keeper", p.keeperSummary(st))
	t.add("Runtime", p.nriSummary(&st.NRI))
	if st.TakeOver != nil {
		t.add("Take-over", p.takeOverSummary(st.TakeOver))
	}
	return t
}

// configuration names the configuration in force.
func configuration(st *api.Status) string {
	file := cmp.Or(st.ConfigFile, "built-in default")
	if st.ConfigHash == "" {
		return file
	}
	return fmt.Sprintf("%s (%s)", file, st.ConfigHash[:min(12, len(st.ConfigHash))])
}

// records sums the state of the records up in a line.
func records(r *api.RecordsStatus) string {
	parts := []string{"no file"}
	if r.File != "" {
		parts = []string{fmt.Sprintf("%d written to %s, %d lost", r.Written, r.File, r.Lost)}
	}
	if r.LostAtCrash > 0 {
		parts = append(parts, fmt.Sprintf("%d lost with agents that ended before", r.LostAtCrash))
	}
	parts = append(parts, plural(r.Subscribers, "subscriber"))
	if r.LostToSubs > 0 {
		parts = append(parts, fmt.Sprintf("%d lost to slow subscribers", r.LostToSubs))
	}
	if r.Error != "" {
		parts = append(parts, "error: "+r.Error)
	}
	return strings.Join(parts, ", ")
}

// marksSummary is the kernel's marks on clean files in a line.
func marksSummary(m *api.MarksStatus) string {
	line := fmt.Sprintf("%d of %d, %d placed, %d broken by writers, %d evicted, %d flushed", m.Now, m.Max, m.Placed, m.Broken, m.Evicted, m.Flushed)
	if m.Shed > 0 {
		line += fmt.Sprintf(", %d given up for events", m.Shed)
	}
	if skipped := reasonCounts(m.Skipped); skipped != "" {
		line += "; none for " + skipped
	}
	return line
}

// eventsSummary is what event readers met in a line.
func eventsSummary(e *api.EventsStatus) string {
	parts := []string{fmt.Sprintf("%d read", e.Read)}
	if unopened := reasonCounts(e.Unopened); unopened != "" {
		parts = append(parts, "denied by the kernel "+unopened)
	}
	for _, n := range []struct {
		count uint64
		what  string
	}{
		{e.ReadErrors, "failed reads"},
		{e.Malformed, "malformed"},
		{e.FailedAnswers, "failed answers"},
		{e.KernelComplaints, "complaints of the kernel"},
	} {
		if n.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	return strings.Join(parts, ", ")
}

// descriptorsSummary is the budget of descriptors in a line.
func descriptorsSummary(d *api.DescriptorsStatus) string {
	parts := []string{fmt.Sprintf("%d of %d", d.Open, d.Limit)}
	for _, s := range d.Shares {
		if s.Used != nil {
			parts = append(parts, fmt.Sprintf("%s %d of %d", s.Kind, *s.Used, s.Max))
		}
	}
	return strings.Join(parts, ", ")
}

// aheadSummary is the scanning ahead of the first open in a line.
func (p *program) aheadSummary(a *api.AheadStatus) string {
	line := a.State
	if !a.Since.IsZero() {
		line += " for " + p.since(a.Since)
	}
	if a.State == api.AheadOff {
		return line
	}
	line += fmt.Sprintf(", %s to go, %d done, %d of %d files, %s", plural(a.LayersQueued, "layer"), a.LayersDone,
		a.FilesDone, a.FilesTotal, units.BytesSize(float64(a.Bytes)))
	if a.Findings > 0 {
		line += ", " + plural(a.Findings, "finding")
	}
	if a.Current != "" {
		line += ", now " + a.Current
	}
	return line
}

func tenantTable(st *api.Status) *table {
	t := &table{heading: []string{
		"TENANT", "MODE", "CONTAINERS", "PENDING", "OLDEST", "QUEUED", "IN FLIGHT", "STUCK", "SCANS", "MARKS", "ALLOWED", "DENIED", "UNSCANNED",
	}}
	for _, n := range st.Tenants {
		t.add(n.Name, n.Mode, n.Containers, n.Pending, age(n.OldestMicros), n.Queued, n.InFlight,
			count(uint64(max(0, n.Stuck)), red), n.Scans, n.Marks, n.Allowed, count(n.Denied, red), count(n.Unscanned, yellow))
	}
	return t
}

// age is for how long the oldest opener waits.
func age(micros int64) string {
	if micros == 0 {
		return "-"
	}
	return (time.Duration(micros) * time.Microsecond).Round(time.Millisecond).String()
}

// reasonTable says why answers were what they were.
func reasonTable(st *api.Status) *table {
	t := &table{heading: []string{"TENANT", "REASON", "ANSWERS"}}
	for _, n := range st.Tenants {
		for _, reason := range slices.Sorted(maps.Keys(n.Reasons)) {
			t.add(n.Name, reason, n.Reasons[reason])
		}
	}
	return t
}

func (p *program) containerTable(st *api.Status) *table {
	t := &table{heading: []string{
		"CONTAINER", "NAME", "NAMESPACE", "TENANT", "PID", "GUARDED", "MARKS", "ALLOWED", "DENIED",
	}}
	for _, n := range st.Containers {
		t.add(shortID(n.ID), cmp.Or(n.Name, "-"), cmp.Or(n.Namespace, "-"), n.Tenant, n.PID,
			p.since(n.Since), marks(n.Marks), n.Allowed, count(n.Denied, red))
	}
	return t
}

// marks sums a container's marks up by kind: "2 superblock, 1 none".
func marks(all []api.Mark) string {
	kinds := make(map[string]int)
	for _, m := range all {
		kinds[m.Kind]++
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[kind], kind))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

func scannerTable(st *api.Status) *table {
	t := &table{heading: []string{"SCANNER", "DRIVER", "STATE", "GENERATION", "ERROR"}}
	for _, n := range st.Scanners {
		state := cell{text: "healthy", style: green}
		if !n.Healthy {
			state = cell{text: "unhealthy", style: red}
		}
		t.add(n.Name, n.Driver, state, cmp.Or(n.Generation, "-"), n.Error)
	}
	return t
}

// count is a number that stands out unless it is zero.
func count(n uint64, s style) cell {
	if n == 0 {
		s = plain
	}
	return cell{text: fmt.Sprint(n), style: s}
}

// since says how long ago t was, in words.
func (p *program) since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return strings.ToLower(units.HumanDuration(p.now().Sub(t)))
}

// shortID returns the part of a container id that people use.
func shortID(id string) string { return id[:min(12, len(id))] }
