package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

func (p *program) explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "say what is known of a container's file, and what its next open will be answered",
		ArgsUsage: "--container NAME PATH",
		Description: `Shows everything that the agent knows of the file at PATH in a container: whose
policy decides, which image layer it comes from or why none, which verdicts are
kept of it, whether the kernel answers by itself, and what the next open and the
next exec will be answered. Nothing is scanned, counted or changed by asking.

PATH is absolute, as a process in the container would open it. Exits with 2 if
there is no such container or no such file in it.

Examples:
  assay explain --container web /usr/bin/curl
  assay explain --container 3f2a9b /srv/upload.zip
  assay explain --container web /bin/sh -o json | jq .open.decision`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: flagContainer, Usage: "of the container with this `NAME`, id or beginning of its id"},
		},
		Action: p.explain,
	}
}

func (p *program) explain(c *cli.Context) error {
	args, err := operands(c, "a PATH", 1, 1)
	if err != nil {
		return err
	}
	container, path := c.String(flagContainer), args[0]
	if container == "" {
		return usage("\"assay status\" lists the containers", "%q needs a --container", c.Command.HelpName)
	}
	if !filepath.IsAbs(path) {
		return usage("name the file as the container sees it, beginning with /", "%q is no absolute path", path)
	}
	e, err := newAgent(c).explain(c.Context, container, path)
	if err != nil {
		return err
	}
	if asJSON(c) {
		return p.printJSON(e)
	}
	return p.printSections(p.explainTable(&e), knownTable(e.Scanners), answerTable(&e))
}

// explainTable says what the file is.
func (p *program) explainTable(e *api.Explanation) *table {
	t := &table{}
	t.add("Container", p.containerSummary(&e.Container))
	t.add("Policy", policySummary(&e.Policy))
	file := fmt.Sprintf("%s, %s, %s", e.File.Path, e.File.Type, units.BytesSize(float64(e.File.Size)))
	if e.File.Identity != "" {
		file += ", identity " + e.File.Identity
	}
	t.add("File", file)
	m := &e.File.Mount
	t.add("Mount", fmt.Sprintf("%s, %s, mark %s: %s", m.Destination, m.FSType, cmp.Or(m.Kind, "none"), m.Why))
	t.add("Layer", layerSummary(&e.Layer))
	if e.Layer.Text != "" {
		t.add("", e.Layer.Text)
	}
	t.add("Kernel mark", p.markSummary(&e.Mark))
	for _, note := range e.Notes {
		t.add("Note", cell{text: note, style: yellow})
	}
	return t
}

func (p *program) containerSummary(n *api.ExplainedContainer) string {
	parts := []string{strings.TrimSpace(shortID(n.ID) + " " + n.Name)}
	for _, part := range []struct{ what, value string }{{"namespace", n.Namespace}, {"pod", n.Pod}, {"image", n.Image}} {
		if part.value != "" {
			parts = append(parts, part.what+" "+part.value)
		}
	}
	parts = append(parts, fmt.Sprintf("pid %d", n.PID))
	if !n.Since.IsZero() {
		parts = append(parts, "guarded for "+p.since(n.Since))
	}
	return joinWords(parts)
}

func policySummary(n *api.ExplainedPolicy) string {
	limit := "no size limit"
	if n.MaxSize > 0 {
		limit = "up to " + units.BytesSize(float64(n.MaxSize))
	}
	return fmt.Sprintf("tenant %s, %s, scans on %s, %s, kernel marks %s; on error %s, timeout %s, unscannable %s, too large %s",
		n.Tenant, n.Mode, cmp.Or(strings.Join(n.On, " and "), "nothing"), limit, cmp.Or(n.KernelMarks, "-"),
		cmp.Or(n.OnError, "-"), cmp.Or(n.OnTimeout, "-"), cmp.Or(n.OnUnscannable, "-"), cmp.Or(n.OnTooLarge, "-"))
}

// layerSummary says which layer a file comes from, or why none.
func layerSummary(l *api.ExplainedLayer) string {
	if !l.Pristine {
		return "none: " + cmp.Or(l.Reason, "unknown")
	}
	parts := []string{cmp.Or(l.Digest, "no known digest"), fmt.Sprintf("depth %d", l.Depth)}
	if l.Directory != "" {
		parts = append(parts, l.Directory)
	}
	return joinWords(parts)
}

// markSummary says whether the kernel answers by itself, and if not, why.
func (p *program) markSummary(m *api.ExplainedMark) string {
	line := m.State
	if !m.Since.IsZero() {
		line += " for " + p.since(m.Since)
	}
	line += ", lease " + m.Lease
	if m.Why != "" {
		line += ": " + m.Why
	}
	return line
}

// knownTable has a row for each verdict that is kept, and one for a scanner
// without any.
func knownTable(scanners []api.ExplainedScanner) *table {
	t := &table{heading: []string{"SCANNER", "STAGE", "WANTED", "VERDICT", "GENERATION", "COUNTS", "KEPT FOR", "SIGNATURE"}}
	for _, s := range scanners {
		wanted := cmp.Or(s.Generation, "unknown")
		if len(s.Verdicts) == 0 {
			t.add(s.Name, s.Stage, wanted, "none", "-", "-", "-")
		}
		for _, v := range s.Verdicts {
			look := green
			if v.Verdict != "clean" {
				look = red
			}
			counts := "yes"
			if !v.Current {
				look, counts = plain, "no, outdated"
			}
			t.add(s.Name, s.Stage, wanted, cell{v.Verdict, look}, v.Generation, counts, v.Scope, v.Signature)
		}
	}
	return t
}

// answerTable says what comes next.
func answerTable(e *api.Explanation) *table {
	t := &table{heading: []string{"NEXT", "ANSWER", "FROM", "REASON", "DETAIL"}}
	for _, next := range []struct {
		op string
		p  *api.Prediction
	}{{"open", &e.Open}, {"exec", &e.Exec}} {
		answer, from := prediction(next.p)
		t.add(next.op, answer, from, cmp.Or(next.p.Reason, "-"), next.p.Detail)
	}
	return t
}

// prediction says what an event will be answered, and by whom.
func prediction(n *api.Prediction) (answer cell, from string) {
	if n.Answer == api.AnswerScan {
		return cell{text: "after a scan", style: yellow}, "scan by " + cmp.Or(joinWords(n.Scanners), "nobody")
	}
	answer, from = cell{text: n.Decision, style: green}, cmp.Or(n.Source, "-")
	if n.Decision != "allow" {
		answer.style = red
	}
	if len(n.Scanners) > 0 { // such as in audit mode
		from += ", then scan by " + joinWords(n.Scanners)
	}
	return answer, from
}
