package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

// The flags of verdicts.
const (
	flagBy  = "by"
	flagTop = "top"
)

// The values of --by.
const (
	byLayer   = "layer"
	byScanner = "scanner"
	byAll     = "all"
)

// verdictSections returns the values of --by.
func verdictSections() []string { return []string{byLayer, byScanner, byAll} }

func (p *program) verdictsCommand() *cli.Command {
	return &cli.Command{
		Name:  "verdicts",
		Usage: "show which verdicts the agent keeps, by layer and by scanner",
		Description: `Shows what the agent's verdict cache and its store on disk hold, and how often
an opener found its verdict there. Nothing is changed by looking.

A verdict on a file that is as its image layer has it is kept for the layer, and
answers every container with that layer; any other is kept for its container
alone. Only verdicts of a scanner's current generation answer openers.

Examples:
  assay verdicts
  assay verdicts --by layer --top 5     the layers that take most memory
  assay verdicts --by scanner           what a signature update made stale
  assay verdicts -o json | jq .cache.hitRate`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: flagBy, Value: byAll, Usage: "show this `SECTION`: layer, scanner or all"},
			&cli.IntFlag{Name: flagTop, Value: 20, Usage: "show the `N` layers and containers that take most memory; 0 shows all"},
		},
		Action: p.verdicts,
	}
}

func (p *program) verdicts(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	by, top := c.String(flagBy), c.Int(flagTop)
	if !slices.Contains(verdictSections(), by) {
		return usage("use --by layer, --by scanner or --by all", "unknown section %q", by)
	}
	if top < 0 {
		return usage("use --top 0 for all", "%d is no number of layers", top)
	}
	v, err := newAgent(c).verdicts(c.Context)
	if err != nil {
		return err
	}
	if asJSON(c) {
		return p.printJSON(v)
	}
	return p.printVerdicts(&v, by, top)
}

// printVerdicts writes the tables of v that by asks for.
func (p *program) printVerdicts(v *api.Verdicts, by string, top int) error {
	if v.Cache.Files == 0 {
		const text = "No verdicts are kept yet. They come with the first opens in guarded containers,\nor ahead of them: see \"assay scan image --help\".\n\n"
		if _, err := io.WriteString(p.stdout, text); err != nil {
			return err
		}
	}
	var sections []*table
	if by == byAll {
		sections = append(sections, verdictTable(v))
	}
	if by != byScanner {
		sections = append(sections, scopeTable(v.Scopes, top))
	}
	if by != byLayer {
		sections = append(sections, generationTable(v.Scanners))
	}
	if err := p.printSections(sections...); err != nil {
		return err
	}
	if left := len(v.Scopes) - top; by != byScanner && top > 0 && left > 0 {
		_, err := fmt.Fprintf(p.stdout, "\n%d more layers and containers: --top 0 shows all\n", left)
		return err
	}
	return nil
}

// verdictTable sums everything up.
func verdictTable(v *api.Verdicts) *table {
	t := &table{}
	t.add("Verdicts", cacheSummary(&v.Cache))
	f := &v.Flights
	t.add("Scans", fmt.Sprintf("%d under way, %d started, %d openers joined, %d handed over, %d not shared",
		f.Now, f.Started, f.Joined, f.HandedOver, f.Dispersed))
	t.add("Not kept", cmp.Or(reasonCounts(v.Refused), "none"))
	t.add("Dropped", cmp.Or(reasonCounts(v.Flushed), "none"))
	addStore(t, &v.Store)
	return t
}

// cacheSummary is the cache in a line.
func cacheSummary(s *api.CacheStatus) string {
	line := fmt.Sprintf("%s, %s of %s memory", plural(s.Files, "file"), units.BytesSize(float64(s.Bytes)), units.BytesSize(float64(s.MaxBytes)))
	if s.Hits+s.Misses > 0 {
		line += fmt.Sprintf(", %s of %d lookups answered", percent(s.HitRate), s.Hits+s.Misses)
	}
	return line
}

// addStore adds what is to say about the store.
func addStore(t *table, s *api.StoreStatus) {
	switch {
	case s.Error != "":
		t.add("Store", cell{text: s.Error, style: red})
	case s.File == "":
		t.add("Store", "none, verdicts end with the agent")
	}
	if s.File != "" {
		line := fmt.Sprintf("%s, %s of %s, %d written, %d restored in %d ms", s.File, units.BytesSize(float64(s.Bytes)),
			units.BytesSize(float64(s.MaxBytes)), s.Written, s.Restored, s.LoadMillis)
		if s.NoRoom > 0 {
			line += fmt.Sprintf(", no room for %d", s.NoRoom)
		}
		if lost := reasonCounts(s.Lost); lost != "" {
			line += ", lost: " + lost
		}
		t.add("Store", line)
	}
	if s.Damage != "" {
		t.add("Store", cell{text: s.Damage, style: yellow})
	}
}

// scopeTable shows the layers and containers that take most memory.
func scopeTable(scopes []api.VerdictScope, top int) *table {
	t := &table{heading: []string{"KIND", "USERS", "FILES", "MEMORY", "HITS", "MISSES", "HIT RATE", "LAYER OR CONTAINER"}}
	dearest := slices.SortedStableFunc(slices.Values(scopes), func(a, b api.VerdictScope) int { return cmp.Compare(b.Bytes, a.Bytes) })
	if top > 0 {
		dearest = dearest[:min(top, len(dearest))]
	}
	for _, s := range dearest {
		t.add(s.Kind, s.Users, s.Files, units.BytesSize(float64(s.Bytes)), s.Hits, s.Misses, rate(s.HitRate, s.Hits+s.Misses), s.Label)
	}
	return t
}

// generationTable has a row for each generation; what is counted by scanner
// stands in a scanner's first.
func generationTable(scanners []api.VerdictScanner) *table {
	t := &table{heading: []string{"SCANNER", "MALICIOUS", "HITS", "MISSES", "HIT RATE", "VERDICTS", "OF GENERATION"}}
	for i := range scanners {
		s := &scanners[i]
		row := []any{s.Name, count(uint64(max(0, s.Malicious)), red), s.Hits, s.Misses, rate(s.HitRate, s.Hits+s.Misses)}
		if len(s.Generations) == 0 {
			t.add(append(row, 0, "-")...)
		}
		for _, g := range s.Generations {
			which := cell{text: g.Generation, style: plain}
			if g.Current {
				which = cell{text: g.Generation + " (current)", style: green}
			}
			t.add(append(row, g.Verdicts, which)...)
			row = []any{"", "", "", "", ""}
		}
	}
	return t
}

// rate shows a hit rate, unless nothing was looked up.
func rate(hitRate float64, lookups uint64) string {
	if lookups == 0 {
		return "-"
	}
	return percent(hitRate)
}

func percent(part float64) string { return fmt.Sprintf("%.1f%%", 100*part) }

// reasonCounts shows counters by reason: "7 layer-gone, 3 cold-file".
func reasonCounts(counts map[string]uint64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[reason]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, reason))
		}
	}
	return strings.Join(parts, ", ")
}
