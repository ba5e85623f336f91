package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/install"
)

// The flags of install containerd, besides those of the other targets. The
// configuration is containerd's here.
const (
	flagContainerd    = "containerd"
	flagCtr           = "ctr"
	flagDir           = "dir"
	flagHandler       = "handler"
	flagRequirePlugin = "require-plugin"
	flagPreInstalled  = "pre-installed"
	flagEdit          = "edit"
)

func (p *program) installContainerdCommand() *cli.Command {
	return &cli.Command{
		Name:  "containerd",
		Usage: "a base specification with the hook, which containerd imports",
		Description: `Makes every container of containerd's Kubernetes service (CRI) start with
assay-hook, whether or not the agent's NRI plugin is there. Writes a base
specification for each runtime handler, and one file that containerd imports,
which names them. containerd's own configuration is left alone, unless --edit
allows to add the one line that imports the file. Counts from the next start of
containerd on, which is yours to do: systemctl restart containerd.

While the agent is away no container starts, but in the namespaces of
--exempt-namespace. With --require-plugin, containerd also refuses to create
containers while the agent's NRI plugin is not connected, unless the pod has the
annotation ` + install.TolerateAnnotation + `: "true". Any author of a pod can
set that; the hook is the gate that holds.

Examples:
  sudo assay install containerd --dry-run
  sudo assay install containerd --edit
  sudo assay install containerd --handler runc --handler crun
  sudo assay install containerd --require-plugin --pre-installed`,
		Flags: append(
			containerdFlags(), hookFlag(), exemptFlag(),
			&cli.StringSliceFlag{Name: flagHandler, Usage: "the runtime handler `NAME`; may be repeated", DefaultText: "all that run processes of the node (io.containerd.runc.v2)"},
			&cli.StringFlag{Name: flagCtr, Usage: "`PATH` of containerd's ctr, which tells its default specification", DefaultText: "ctr beside containerd"},
			&cli.BoolFlag{Name: flagRequirePlugin, DisableDefaultText: true, Usage: "let NRI refuse containers while the agent's plugin is not connected"},
			&cli.BoolFlag{Name: flagPreInstalled, DisableDefaultText: true, Usage: "let containerd start the agent's plugin itself, from its NRI plugin directory"},
			&cli.BoolFlag{Name: flagEdit, DisableDefaultText: true, Usage: "add the line to containerd's configuration that imports our file, if it has none"},
		),
		Action: p.installContainerd,
	}
}

func (p *program) uninstallContainerdCommand() *cli.Command {
	return &cli.Command{
		Name:  "containerd",
		Usage: "remove the base specifications and what names them",
		Description: `Removes the files that "assay install containerd" wrote, and the line that its
--edit added. Counts from the next start of containerd on: until then containers
start with the hook, so leave assay-hook where it is.

Examples:
  sudo assay uninstall containerd --dry-run
  sudo assay uninstall containerd && sudo systemctl restart containerd`,
		Flags:  containerdFlags(),
		Action: p.uninstallContainerd,
	}
}

// containerdFlags returns the flags that installing and uninstalling have in common.
func containerdFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: flagConfig, Value: install.DefaultContainerdConfig, Usage: "containerd's configuration `FILE`"},
		&cli.StringFlag{Name: flagDir, Value: install.DefaultContainerdDir, Usage: "`DIR` for Assay's files"},
		&cli.StringFlag{Name: flagContainerd, Usage: "`PATH` of containerd", DefaultText: "containerd on PATH"},
		dryRunFlag(),
	}
}

func (p *program) installContainerd(c *cli.Context) error {
	hook, err := hookPath(c)
	if err != nil {
		return err
	}
	opts := install.ContainerdOptions{
		Containerd: c.String(flagContainerd), Ctr: c.String(flagCtr), Config: c.String(flagConfig), Dir: c.String(flagDir),
		HookPath: hook, Socket: c.String(flagSocket), Exempt: c.StringSlice(flagExempt), Handlers: c.StringSlice(flagHandler),
		RequirePlugin: c.Bool(flagRequirePlugin), Edit: c.Bool(flagEdit), DryRun: c.Bool(flagDryRun),
	}
	if c.Bool(flagPreInstalled) {
		if opts.Plugin, err = os.Executable(); err != nil {
			return usage("leave --"+flagPreInstalled+" out", "this program cannot be found: %w", err)
		}
	}
	r, err := install.Containerd(c.Context, opts)
	if err != nil {
		return containerdFailure(err, hook)
	}
	if asJSON(c) {
		return p.printJSON(containerdDocumentOf(c, &r))
	}
	return errors.Join(p.printFiles(c, &r, "is as wanted already"), p.printLines(installedContainerd(c, &r)))
}

func (p *program) uninstallContainerd(c *cli.Context) error {
	if _, err := operands(c, "no arguments", 0, 0); err != nil {
		return err
	}
	r, err := install.UninstallContainerd(c.Context, install.ContainerdOptions{
		Containerd: c.String(flagContainerd), Config: c.String(flagConfig), Dir: c.String(flagDir), DryRun: c.Bool(flagDryRun),
	})
	if err != nil {
		return containerdFailure(err, "")
	}
	if asJSON(c) {
		return p.printJSON(containerdDocumentOf(c, &r))
	}
	return errors.Join(p.printFiles(c, &r, ""), p.printLines(uninstalledContainerd(c, &r)))
}

// containerdFailure is installFailure where other files than the hook can be missing.
func containerdFailure(err error, hook string) error {
	path, ok := errors.AsType[*fs.PathError](err)
	if ok && strings.HasPrefix(hook, path.Path) || !errors.Is(err, fs.ErrNotExist) {
		return installFailure(err)
	}
	return &failure{code: exitUsage, err: err}
}

// A containerdDocument is the output of install and uninstall containerd with -o json.
type containerdDocument struct {
	Target   string            `json:"target"`
	DryRun   bool              `json:"dryRun"` // then nothing was changed; the rest says what would be
	Files    []installDocument `json:"files"`
	Handlers []string          `json:"handlers,omitempty"` // whose containers start with the hook
	LeftOut  []string          `json:"leftOut,omitempty"`  // the other handlers
	Import   string            `json:"import,omitempty"`   // the line that containerd's configuration lacks; after an uninstall, the one that was removed
	Manual   string            `json:"manual,omitempty"`   // what has to be written into it by hand
	InForce  bool              `json:"inForce"`            // counts from containerd's next start on
}

func containerdDocumentOf(c *cli.Context, r *install.ContainerdResult) containerdDocument {
	d := containerdDocument{
		Target: c.Command.Name, DryRun: c.Bool(flagDryRun), Files: []installDocument{},
		Handlers: r.Handlers, LeftOut: r.LeftOut, Import: r.Import, Manual: r.Manual, InForce: r.InForce,
	}
	for _, f := range r.Files {
		d.Files = append(d.Files, installDocument{Target: d.Target, Path: f.Path, Changed: f.Changed, DryRun: d.DryRun, Content: string(f.Content)})
	}
	return d
}

// printFiles tells what was done to each file, and in a dry run shows it. unchanged is
// said of a file that was as it should be, if it is to be told at all.
func (p *program) printFiles(c *cli.Context, r *install.ContainerdResult, unchanged string) error {
	dry := c.Bool(flagDryRun)
	words := map[bool]string{true: "wrote ", false: "removed "}
	if dry {
		words = map[bool]string{true: "would write ", false: "would remove "}
	}
	for _, f := range r.Files {
		line := words[f.Content != nil] + printable(f.Path)
		if !f.Changed {
			if f.Content == nil || unchanged == "" {
				continue
			}
			line = printable(f.Path) + " " + unchanged
		}
		if _, err := fmt.Fprintln(p.stdout, line); err != nil {
			return err
		}
		if dry {
			if _, err := p.stdout.Write(f.Content); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *program) printLines(lines []string) error {
	_, err := fmt.Fprint(p.stdout, strings.Join(lines, "\n")+"\n")
	return err
}

// installedContainerd says what holds after an installation, and what is left to do.
func installedContainerd(c *cli.Context, r *install.ContainerdResult) []string {
	lines := []string{"runtime handlers with the hook: " + joinWords(r.Handlers)}
	if len(r.LeftOut) > 0 {
		lines = append(lines, "NOT guarded, runtime handlers left out: "+joinWords(r.LeftOut))
	}
	config := printable(c.String(flagConfig))
	switch {
	case r.Manual != "":
		return append(lines, "NOT in force: this containerd is older than 2.0 and would forget other settings over an import. Add to "+config+
			", into the tables that are there, and restart containerd:\n"+r.Manual)
	case r.Import != "" && c.Bool(flagDryRun) && c.Bool(flagEdit):
		return append(lines, "would add to "+config+", below its version: "+r.Import)
	case r.Import != "":
		return append(lines, "NOT in force: "+config+" does not import it. Add this line below its version, or run this again with --edit:\n  "+r.Import)
	case c.Bool(flagDryRun):
		return lines
	case !r.InForce:
		return append(lines, "NOT in force: another file that containerd imports sets the same keys; see: containerd --config "+config+" config dump")
	}
	return append(lines, "next: systemctl restart containerd (containers keep running), then: assay doctor")
}

// uninstalledContainerd says what is left to do after an uninstallation.
func uninstalledContainerd(c *cli.Context, r *install.ContainerdResult) []string {
	var lines []string
	config := printable(c.String(flagConfig))
	changed := r.Import != ""
	for _, f := range r.Files {
		changed = changed || f.Changed
	}
	switch {
	case !changed:
		return []string{"nothing of \"assay install containerd\" is there; there is nothing to undo"}
	case c.Bool(flagDryRun) && r.Import != "":
		return []string{"would remove from " + config + ": " + r.Import}
	case c.Bool(flagDryRun):
		return nil
	case r.Import != "":
		lines = append(lines, "removed from "+config+": "+r.Import)
	}
	return append(lines, "next: systemctl restart containerd; until then containers start with the hook")
}
