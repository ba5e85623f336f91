package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/doctor"
	"github.com/assay-project/assay/internal/install"
	"github.com/assay-project/assay/internal/tenant"
)

// defaultConfig is the configuration file that is used if it exists and none is
// named.
const defaultConfig = "/etc/assay/assay.yaml"

// The flags of doctor.
const (
	flagConfig           = "config"
	flagContainerdConfig = "containerd-config"
	flagContainers       = "containers"
	flagHooksDir         = "hooks-dir"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "examine this machine: is everything as Assay needs it?",
		Description: `Tries the kernel's features, and looks at rights, limits, runtimes, hooks,
scanners and the agent, each with what to do about it. It changes nothing.
Works without an agent and without root; what it then cannot find out is
"unknown", not a failure. Exits with 1 if anything failed.

Examples:
  sudo assay doctor
  sudo assay doctor --config new.yaml --containers 300
  assay doctor -o json | jq '.checks[] | select(.status != "ok")'`,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: flagConfig, Usage: "examine the configuration in `FILE`",
				DefaultText: defaultConfig + " if it exists, else the built-in default",
			},
			&cli.IntFlag{
				Name: flagContainers, Usage: "check the limits for `N` containers at once",
				DefaultText: fmt.Sprintf("%d, or as many as the agent guards now", doctor.DefaultContainers),
			},
			&cli.StringSliceFlag{
				Name: flagHooksDir, Usage: "look for hooks in `DIR`; may be repeated",
				DefaultText: "where podman looks",
			},
			&cli.StringFlag{Name: flagContainerdConfig, Value: install.DefaultContainerdConfig, Usage: "examine containerd's configuration in `FILE`"},
		},
		Action: p.doctor,
	}
}

// A doctorDocument is the output of "assay doctor -o json".
type doctorDocument struct {
	Healthy bool                  `json:"healthy"` // nothing failed
	Summary map[doctor.Status]int `json:"summary"` // number of checks by status, all four
	Checks  []doctor.Check        `json:"checks"`
}

func (p *program) doctor(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	if c.IsSet(flagContainers) && c.Int(flagContainers) < 1 {
		return usage("expect at least one", "%d is no number of containers", c.Int(flagContainers))
	}
	o, wrong, err := doctorOptions(c)
	if err != nil {
		return err
	}
	checks := doctor.Run(c.Context, o)
	if wrong != nil {
		checks = append(wrong, checks[1:]...) // in place of the check that praises the default
	}
	doc := summary(checks)
	if asJSON(c) {
		err = p.printJSON(doc)
	} else {
		err = p.printDoctor(&doc)
	}
	if err == nil && !doc.Healthy {
		return errFinding
	}
	return err
}

// doctorOptions reads the configuration. One that is wrong is a finding like any
// other: the checks in wrong report it, and the rest is examined with the
// built-in default.
func doctorOptions(c *cli.Context) (o doctor.Options, wrong []doctor.Check, err error) {
	o = doctor.Options{Containers: c.Int(flagContainers), HooksDirs: c.StringSlice(flagHooksDir), ContainerdConfig: c.String(flagContainerdConfig)}
	if c.IsSet(flagSocket) {
		o.Socket = c.String(flagSocket)
	}
	file := cmp.Or(c.String(flagConfig), defaultConfig)
	o.Config, err = tenant.Load(file)
	var problems *tenant.Error
	switch {
	case err == nil:
		o.ConfigFile = file
		return o, nil, nil
	case errors.As(err, &problems):
		for _, problem := range problems.Problems {
			wrong = append(wrong, doctor.Check{
				Area: doctor.AreaConfiguration, Name: fmt.Sprintf("%s:%d:%d", problem.File, problem.Line, problem.Column),
				Status: doctor.Fail, Detail: problem.Message, Remedy: problem.Remedy,
			})
		}
	case c.String(flagConfig) != "":
		return o, nil, &failure{code: exitUsage, err: err}
	case !errors.Is(err, fs.ErrNotExist):
		wrong = []doctor.Check{{
			Area: doctor.AreaConfiguration, Name: file, Status: doctor.Unknown, Detail: err.Error(),
			Remedy: "run the doctor as a user who may read it: sudo assay doctor",
		}}
	}
	o.Config = tenant.Default()
	return o, wrong, nil
}

// summary counts checks.
func summary(checks []doctor.Check) doctorDocument {
	doc := doctorDocument{
		Summary: map[doctor.Status]int{doctor.OK: 0, doctor.Warn: 0, doctor.Fail: 0, doctor.Unknown: 0},
		Checks:  checks,
	}
	for _, check := range checks {
		doc.Summary[check.Status]++
	}
	doc.Healthy = doc.Summary[doctor.Fail] == 0
	return doc
}

// printDoctor shows the checks area by area. Each has its remedy under it.
func (p *program) printDoctor(doc *doctorDocument) error {
	var b strings.Builder
	area := ""
	for i := range doc.Checks {
		check := &doc.Checks[i]
		if check.Area != area {
			if area != "" {
				b.WriteByte('\n')
			}
			area = check.Area
			b.WriteString(p.paint(bold, printable(area)) + "\n")
		}
		status := p.paint(statusStyle(check.Status), fmt.Sprintf("%-7s", check.Status))
		fmt.Fprintf(&b, "  %s  %s", status, printable(check.Name))
		if check.Detail != "" {
			fmt.Fprintf(&b, ": %s", printable(check.Detail))
		}
		b.WriteByte('\n')
		if check.Remedy != "" {
			fmt.Fprintf(&b, "           remedy: %s\n", printable(check.Remedy))
		}
	}
	n := doc.Summary
	fmt.Fprintf(&b, "\n%d ok, %d warn, %d fail, %d unknown\n",
		n[doctor.OK], n[doctor.Warn], n[doctor.Fail], n[doctor.Unknown])
	_, err := fmt.Fprint(p.stdout, b.String())
	return err
}

// statusStyle is the colour of a status.
func statusStyle(s doctor.Status) style {
	switch s {
	case doctor.OK:
		return green
	case doctor.Fail:
		return red
	case doctor.Warn, doctor.Unknown:
		return yellow
	}
	return plain
}
