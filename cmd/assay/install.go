package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/install"
)

// The flags of install and uninstall, besides those of other commands.
const (
	flagHook           = "hook"
	flagNamespace      = "namespace"
	flagOnAgentMissing = "on-agent-missing"
	flagDryRun         = "dry-run"
)

// installTargets returns what the hook can be installed for.
func installTargets() []string { return []string{"podman"} }

// onAgentMissing returns the values of --on-agent-missing.
func onAgentMissing() []string { return []string{"fail", "allow"} }

func (p *program) installCommand() *cli.Command {
	return &cli.Command{
		Name:      "install",
		Usage:     "make a container runtime announce its containers to the agent",
		ArgsUsage: "podman",
		Description: `Writes one file into podman's hooks directory, so that podman runs assay-hook
for every container that it starts from now on. May be repeated; changes
nothing if all is as wanted. A file that Assay did not write is never replaced.

With --on-agent-missing fail, no container starts while the agent is away; with
allow, containers start unguarded then.

Examples:
  sudo assay install podman --dry-run
  sudo assay install podman --hook /usr/local/bin/assay-hook
  sudo assay install podman --namespace ci --on-agent-missing allow
  sudo assay install podman --hooks-dir /tmp/hooks.d   (podman --hooks-dir /tmp/hooks.d run ...)`,
		Flags: []cli.Flag{
			hooksDirFlag(),
			&cli.StringFlag{Name: flagHook, Usage: "`PATH` of the assay-hook program", DefaultText: "assay-hook beside this program"},
			&cli.StringFlag{Name: flagNamespace, Usage: "announce all containers under the namespace `NAME`, which selects their tenant"},
			&cli.StringFlag{
				Name: flagOnAgentMissing, Value: onAgentMissing()[0],
				Usage: "what happens to a container while the agent is away: `ACTION` is fail or allow",
			},
			dryRunFlag(),
		},
		Action: p.install,
	}
}

func (p *program) uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:      "uninstall",
		Usage:     "undo what install did",
		ArgsUsage: "podman",
		Description: `Removes the file that "assay install podman" wrote. Containers that run already
stay guarded. A file that Assay did not write is left alone.

Examples:
  sudo assay uninstall podman --dry-run
  sudo assay uninstall podman`,
		Flags:  []cli.Flag{hooksDirFlag(), dryRunFlag()},
		Action: p.uninstall,
	}
}

func hooksDirFlag() cli.Flag {
	return &cli.StringFlag{Name: flagHooksDir, Value: install.DefaultHooksDir, Usage: "`DIR` where podman looks for hooks"}
}

func dryRunFlag() cli.Flag {
	return &cli.BoolFlag{Name: flagDryRun, DisableDefaultText: true, Usage: "change nothing, only show what would be done"}
}

// An installDocument is the output of install and uninstall with -o json.
type installDocument struct {
	Target  string `json:"target"`
	Path    string `json:"path"`              // the file that is written or removed
	Changed bool   `json:"changed"`           // false: all was as wanted already
	DryRun  bool   `json:"dryRun"`            // then nothing was changed; Changed says what would be
	Content string `json:"content,omitempty"` // of the file; none after an uninstall
}

// target returns the runtime named on the command line.
func target(c *cli.Context) (string, error) {
	args, err := operands(c, "one target: "+joinWords(installTargets()), 1, 1)
	if err != nil {
		return "", err
	}
	if !slices.Contains(installTargets(), args[0]) {
		return "", usage("the targets are: "+joinWords(installTargets()), "unknown target %q of %s", args[0], c.Command.Name)
	}
	return args[0], nil
}

func (p *program) install(c *cli.Context) error {
	name, err := target(c)
	if err != nil {
		return err
	}
	hook, err := hookPath(c)
	if err != nil {
		return err
	}
	result, err := install.Podman(install.PodmanOptions{
		HooksDir: c.String(flagHooksDir), HookPath: hook, Socket: c.String(flagSocket),
		Namespace: c.String(flagNamespace), OnAgentMissing: c.String(flagOnAgentMissing), DryRun: c.Bool(flagDryRun),
	})
	if err != nil {
		return installFailure(err)
	}
	return p.printInstall(c, name, &result, [3]string{
		"would write", "wrote", "is as wanted already; podman runs the hook for every container that it starts",
	})
}

func (p *program) uninstall(c *cli.Context) error {
	name, err := target(c)
	if err != nil {
		return err
	}
	result, err := install.UninstallPodman(install.PodmanOptions{HooksDir: c.String(flagHooksDir), DryRun: c.Bool(flagDryRun)})
	if err != nil {
		return installFailure(err)
	}
	return p.printInstall(c, name, &result, [3]string{"would remove", "removed", "does not exist; there is nothing to undo"})
}

// hookPath returns where the hook's program is.
func hookPath(c *cli.Context) (string, error) {
	if path := c.String(flagHook); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", usage("name the hook with --hook PATH", "the hook cannot be found: %w", err)
	}
	return filepath.Join(filepath.Dir(self), "assay-hook"), nil
}

// installFailure adds what the command line can do about err.
func installFailure(err error) error {
	remedy := ""
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = "run this as root"
	case errors.Is(err, fs.ErrNotExist):
		remedy = "name the hook's program with --hook PATH"
	}
	return &failure{code: exitUsage, err: err, remedy: remedy}
}

// printInstall tells what was done. words are for: would be done, was done,
// nothing to do.
func (p *program) printInstall(c *cli.Context, name string, r *install.Result, words [3]string) error {
	dry := c.Bool(flagDryRun)
	if asJSON(c) {
		return p.printJSON(installDocument{Target: name, Path: r.Path, Changed: r.Changed, DryRun: dry, Content: string(r.Content)})
	}
	line := printable(r.Path) + " " + words[2]
	switch {
	case r.Changed && dry:
		line = words[0] + " " + printable(r.Path)
	case r.Changed:
		line = words[1] + " " + printable(r.Path)
	}
	if _, err := fmt.Fprintln(p.stdout, line); err != nil || !dry {
		return err
	}
	_, err := p.stdout.Write(r.Content)
	return err
}
