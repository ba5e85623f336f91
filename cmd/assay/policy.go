package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
)

func (p *program) policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "work with configuration files, without an agent",
		Description: `Works with configuration files, without an agent.

Examples:
  assay policy check /etc/assay/assay.yaml`,
		Subcommands: []*cli.Command{{
			Name:      "check",
			Usage:     "check a configuration file and show what it means",
			ArgsUsage: "FILE",
			Description: `Reads a configuration file as the agent would, and shows the policies in force
with all defaults filled in. Nothing is started and nobody is asked: whether
the scanners answer is for "assay doctor --config FILE" to say.
Exits with 2 if the file is wrong, with every problem as file:line:column and
what to do about it.

Examples:
  assay policy check assay.yaml
  assay policy check assay.yaml -o json | jq .effective
  assay policy check new.yaml && cp new.yaml /etc/assay/assay.yaml`,
			Action: p.policyCheck,
		}},
	}
}

// A policyDocument is the output of "assay policy check -o json".
type policyDocument struct {
	File      string          `json:"file"`
	Valid     bool            `json:"valid"`
	Hash      string          `json:"hash,omitempty"`      // as "assay status" shows it
	Effective any             `json:"effective,omitempty"` // a configuration file with every default
	Problems  []policyProblem `json:"problems"`
}

// A policyProblem is one thing that is wrong with the file.
type policyProblem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

func (p *program) policyCheck(c *cli.Context) error {
	args, err := operands(c, "one FILE", 1, 1)
	if err != nil {
		return err
	}
	config, err := tenant.Load(args[0])
	var wrong *tenant.Error
	switch {
	case errors.As(err, &wrong):
		return p.printProblems(asJSON(c), args[0], wrong.Problems)
	case err != nil:
		return &failure{code: exitUsage, err: err}
	case asJSON(c):
		return p.printJSON(policyDocument{
			File: args[0], Valid: true, Hash: config.Hash(), Effective: config.Effective(), Problems: []policyProblem{},
		})
	}
	return p.printPolicy(args[0], config)
}

// printProblems shows what is wrong with a file.
func (p *program) printProblems(json bool, file string, problems []tenant.Problem) error {
	if !json {
		for _, problem := range problems {
			where := fmt.Sprintf("%s:%d:%d: ", problem.File, problem.Line, problem.Column)
			if _, err := fmt.Fprintf(p.stderr, "%s%s\n    remedy: %s\n",
				printable(where), printable(problem.Message), printable(problem.Remedy)); err != nil {
				return err
			}
		}
		return errReported
	}
	doc := policyDocument{File: file, Problems: []policyProblem{}}
	for _, problem := range problems {
		doc.Problems = append(doc.Problems, policyProblem(problem))
	}
	if err := p.printJSON(doc); err != nil {
		return err
	}
	return errReported
}

// printPolicy shows what a valid file means.
func (p *program) printPolicy(file string, config *tenant.Config) error {
	if _, err := fmt.Fprintf(p.stdout, "%s is valid (%s)\n", printable(file), config.Hash()); err != nil {
		return err
	}
	tables := []*table{generalTable(config), scannersTable(config), policyTable(config)}
	if len(config.Namespaces) > 0 {
		tables = append(tables, namespacesTable(config))
	}
	for _, t := range tables {
		if _, err := fmt.Fprintln(p.stdout); err != nil {
			return err
		}
		if err := p.print(t); err != nil {
			return err
		}
	}
	return nil
}

func generalTable(config *tenant.Config) *table {
	t := &table{}
	t.add("Socket", config.Socket)
	t.add("State", config.State)
	t.add("Records", recordsString(config))
	t.add("Containerd", fmt.Sprintf("%s, namespace %s", config.Containerd.Socket, config.Containerd.Namespace))
	t.add("NRI", nriString(&config.NRI))
	if keys := config.Trust.PodLabels; len(keys) > 0 {
		t.add("Trust", "pod labels "+joinWords(keys))
	}
	for _, m := range config.Exempt {
		t.add("Exempt", matchString(m))
	}
	return t
}

func recordsString(config *tenant.Config) string {
	s := "no file"
	if r := config.Records; r.File != "" {
		s = fmt.Sprintf("%s, rotated at %s, %d kept", r.File, units.BytesSize(float64(r.MaxSize)), r.Keep)
	}
	if len(config.RecordLabels) > 0 {
		s += "; pod labels " + joinWords(config.RecordLabels)
	}
	return s
}

func nriString(n *tenant.NRI) string {
	if n.Mode == tenant.NRIOff {
		return "off"
	}
	return fmt.Sprintf("%s, %s, index %s, hook %s", n.Mode, n.Socket, n.Index, cmp.Or(n.Hook, "beside the agent"))
}

// namespacesTable shows whose the namespaces are whose labels are known.
func namespacesTable(config *tenant.Config) *table {
	t := &table{heading: []string{"NAMESPACE", "LABELS", "TENANT"}}
	for _, n := range config.Namespaces {
		t.add(n.Name, cmp.Or(labelsString(n.Labels), "none"), ownersString(config, n.Name))
	}
	return t
}

// ownersString says whose a namespace's containers can be: those of tenants that ask for
// pod labels, then that of the first that does not.
func ownersString(config *tenant.Config, namespace string) string {
	subject := config.Subject(namespace, nil)
	if config.Exempts(subject) {
		return "exempt"
	}
	var owners []string
	for _, t := range config.Tenants {
		asked := t.Match.PodLabels
		t.Match.PodLabels = nil
		switch {
		case !t.Match.Selects(subject):
		case len(asked) == 0:
			return strings.Join(append(owners, t.Name), ", else ")
		default:
			owners = append(owners, fmt.Sprintf("%s by pod labels", t.Name))
		}
	}
	return strings.Join(owners, ", else ")
}

func scannersTable(config *tenant.Config) *table {
	t := &table{heading: []string{"SCANNER", "DRIVER", "SETTINGS"}}
	for i := range config.Scanners {
		s := &config.Scanners[i]
		t.add(s.Name, scanners.Driver(*s), scannerSettings(s))
	}
	return t
}

// scannerSettings sums a scanner's settings up.
func scannerSettings(s *tenant.Scanner) string {
	switch {
	case s.Clamd != nil:
		return fmt.Sprintf("%s, %s", s.Clamd.Address, plural(s.Clamd.Connections, "connection"))
	case s.Hashlist != nil:
		return cmp.Or(joinWords(s.Hashlist.Files), "no files, only what is built in")
	}
	return ""
}

// policyTable shows one line per setting and one column per tenant, since there
// are many settings and few tenants.
func policyTable(config *tenant.Config) *table {
	t := &table{heading: []string{"TENANT"}}
	settings := []struct {
		name string
		of   func(*tenant.Tenant) string
	}{
		{"match", func(n *tenant.Tenant) string { return matchString(n.Match) }},
		{"mode", func(n *tenant.Tenant) string { return string(n.Mode) }},
		{"on", onString},
		{"stages", stagesString},
		{"deadline", func(n *tenant.Tenant) string { return n.Deadline.String() }},
		{"onError", func(n *tenant.Tenant) string { return string(n.OnError) }},
		{"onTimeout", func(n *tenant.Tenant) string { return string(n.OnTimeout) }},
		{"onUnscannable", func(n *tenant.Tenant) string { return string(n.OnUnscannable) }},
		{"onTooLarge", func(n *tenant.Tenant) string { return string(n.OnTooLarge) }},
		{"maxSize", sizeString},
		{"kernelMarks", func(n *tenant.Tenant) string { return string(n.KernelMarks) }},
		{"volumeMarks", func(n *tenant.Tenant) string { return string(n.VolumeMarks) }},
		{"scanAhead", func(n *tenant.Tenant) string { return string(n.ScanAhead) }},
		{"onNewGeneration", func(n *tenant.Tenant) string { return string(n.OnGeneration) }},
		{"grace", func(n *tenant.Tenant) string { return n.Grace.String() }},
		{"onAgentGone", func(n *tenant.Tenant) string { return string(n.OnAgentGone) }},
		{"onUnguarded", func(n *tenant.Tenant) string { return string(n.OnUnguarded) }},
		{"exclude.mounts", func(n *tenant.Tenant) string { return cmp.Or(joinWords(n.ExcludeMounts), "none") }},
	}
	for i := range config.Tenants {
		t.heading = append(t.heading, printable(config.Tenants[i].Name))
	}
	for _, s := range settings {
		row := []any{s.name}
		for i := range config.Tenants {
			row = append(row, s.of(&config.Tenants[i]))
		}
		t.add(row...)
	}
	return t
}

// matchString says which containers a match selects: whatever stands between semicolons
// must hold.
func matchString(m tenant.Match) string {
	if m.Everything() {
		return "everything"
	}
	var parts []string
	for _, part := range []struct{ what, asked string }{
		{"namespaces", joinWords(m.Namespaces)},
		{"namespace labels", labelsString(m.NamespaceLabels)},
		{"pod labels", labelsString(m.PodLabels)},
	} {
		if part.asked != "" {
			parts = append(parts, part.what+" "+part.asked)
		}
	}
	return strings.Join(parts, "; ")
}

// labelsString shows labels as kubectl does, in order.
func labelsString(labels map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return joinWords(pairs)
}

// onString says which operations are scanned.
func onString(n *tenant.Tenant) string {
	var ops []string
	if n.OnOpen {
		ops = append(ops, "open")
	}
	if n.OnExec {
		ops = append(ops, "exec")
	}
	return joinWords(ops)
}

// stagesString shows the order of the scanners: "hashes, then clamav|other (any)".
func stagesString(n *tenant.Tenant) string {
	stages := make([]string, len(n.Stages))
	for i, s := range n.Stages {
		rule := "all"
		switch s.Quorum {
		case 0:
		case 1:
			rule = "any"
		default:
			rule = fmt.Sprintf("quorum %d", s.Quorum)
		}
		stages[i] = fmt.Sprintf("%s (%s)", strings.Join(s.Scanners, "+"), rule)
	}
	return strings.Join(stages, ", then ")
}

// sizeString shows a size limit.
func sizeString(n *tenant.Tenant) string {
	if n.MaxSize == 0 {
		return "no limit"
	}
	return units.BytesSize(float64(n.MaxSize))
}

// joinWords joins names for people.
func joinWords(names []string) string { return strings.Join(names, ", ") }
