package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/install"
)

// The flags of install and uninstall, besides those of other commands.
const (
	flagHook           = "hook"
	flagNamespace      = "namespace"
	flagOnAgentMissing = "on-agent-missing"
	flagExempt         = "exempt-namespace"
	flagDryRun         = "dry-run"
)

// onAgentMissing returns the values of --on-agent-missing.
func onAgentMissing() []string { return []string{"fail", "allow"} }

func (p *program) installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "make a container runtime announce its containers to the agent",
		Description: `Makes a container runtime run assay-hook for every container that it starts from
now on. May be repeated; changes nothing if all is as wanted. A file that Assay
did not write is never replaced. "assay uninstall" undoes it.

Examples:
  sudo assay install podman --dry-run
  sudo assay install containerd --edit
  sudo assay install cri-o`,
		Subcommands: []*cli.Command{p.installPodmanCommand(), p.installContainerdCommand(), p.installCRIOCommand()},
	}
}

func (p *program) uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "undo what install did",
		Description: `Removes what "assay install" wrote, and nothing else. Containers that run already
stay guarded.

Examples:
  sudo assay uninstall podman --dry-run
  sudo assay uninstall containerd`,
		Subcommands: []*cli.Command{p.uninstallPodmanCommand(), p.uninstallContainerdCommand(), p.uninstallCRIOCommand()},
	}
}

func (p *program) installPodmanCommand() *cli.Command {
	return &cli.Command{
		Name:  "podman",
		Usage: "one file in podman's hooks directory",
		Description: `Writes one file into podman's hooks directory, so that podman runs assay-hook
for every container that it starts from now on.

With --on-agent-missing fail, no container starts while the agent is away; with
allow, containers start unguarded then.

Examples:
  sudo assay install podman --dry-run
  sudo assay install podman --hook /usr/local/bin/assay-hook
  sudo assay install podman --namespace ci --on-agent-missing allow
  sudo assay install podman --hooks-dir /tmp/hooks.d   (podman --hooks-dir /tmp/hooks.d run ...)`,
		Flags: []cli.Flag{
			hooksDirFlag(),
			hookFlag(),
			&cli.StringFlag{Name: flagNamespace, Usage: "announce all containers under the namespace `NAME`, which selects their tenant"},
			&cli.StringFlag{
				Name: flagOnAgentMissing, Value: onAgentMissing()[0],
				Usage: "what happens to a container while the agent is away: `ACTION` is fail or allow",
			},
			dryRunFlag(),
		},
		Action: p.installPodman,
	}
}

func (p *program) uninstallPodmanCommand() *cli.Command {
	return &cli.Command{
		Name:  "podman",
		Usage: "remove the file from podman's hooks directory",
		Description: `Removes the file that "assay install podman" wrote. A file that Assay did not
write is left alone.

Examples:
  sudo assay uninstall podman --dry-run
  sudo assay uninstall podman`,
		Flags: []cli.Flag{hooksDirFlag(), dryRunFlag()},
		Action: func(c *cli.Context) error {
			result, err := install.UninstallPodman(install.PodmanOptions{HooksDir: c.String(flagHooksDir), DryRun: c.Bool(flagDryRun)})
			return p.tellUninstalled(c, &result, err)
		},
	}
}

func (p *program) installCRIOCommand() *cli.Command {
	return &cli.Command{
		Name:  "cri-o",
		Usage: "one file in CRI-O's hooks directory",
		Description: `Writes one file into CRI-O's hooks directory, so that CRI-O runs assay-hook for
every container that it starts from now on. The hook takes a pod's namespace
from what CRI-O itself tells of it. While the agent is away no container starts,
but in the namespaces of --exempt-namespace.

Podman reads the same directory. On a node with both, give one of them another
(hooks_dir in its configuration).

Examples:
  sudo assay install cri-o --dry-run
  sudo assay install cri-o --hooks-dir /etc/crio/hooks.d`,
		Flags: []cli.Flag{hooksDirFlag(), hookFlag(), exemptFlag(), dryRunFlag()},
		Action: func(c *cli.Context) error {
			hook, err := hookPath(c)
			if err != nil {
				return err
			}
			result, err := install.CRIO(install.CRIOOptions{
				HooksDir: c.String(flagHooksDir), HookPath: hook, Socket: c.String(flagSocket),
				Exempt: c.StringSlice(flagExempt), DryRun: c.Bool(flagDryRun),
			})
			return p.tellInstalled(c, &result, err, "CRI-O runs the hook for every container that it starts")
		},
	}
}

func (p *program) uninstallCRIOCommand() *cli.Command {
	return &cli.Command{
		Name:  "cri-o",
		Usage: "remove the file from CRI-O's hooks directory",
		Description: `Removes the file that "assay install cri-o" wrote. A file that Assay did not
write is left alone.

Examples:
  sudo assay uninstall cri-o`,
		Flags: []cli.Flag{hooksDirFlag(), dryRunFlag()},
		Action: func(c *cli.Context) error {
			result, err := install.UninstallCRIO(install.CRIOOptions{HooksDir: c.String(flagHooksDir), DryRun: c.Bool(flagDryRun)})
			return p.tellUninstalled(c, &result, err)
		},
	}
}

func hookFlag() cli.Flag {
	return &cli.StringFlag{Name: flagHook, Usage: "`PATH` of the assay-hook program", DefaultText: "assay-hook beside this program"}
}

func exemptFlag() cli.Flag {
	return &cli.StringSliceFlag{
		Name: flagExempt, Value: cli.NewStringSlice(install.DefaultExempt),
		Usage: "start containers of the Kubernetes namespace `NS`, an exact name, while the agent is away; may be repeated",
	}
}

func hooksDirFlag() cli.Flag {
	return &cli.StringFlag{Name: flagHooksDir, Value: install.DefaultHooksDir, Usage: "`DIR` where the runtime looks for hooks"}
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

func (p *program) installPodman(c *cli.Context) error {
	hook, err := hookPath(c)
	if err != nil {
		return err
	}
	result, err := install.Podman(install.PodmanOptions{
		HooksDir: c.String(flagHooksDir), HookPath: hook, Socket: c.String(flagSocket),
		Namespace: c.String(flagNamespace), OnAgentMissing: c.String(flagOnAgentMissing), DryRun: c.Bool(flagDryRun),
	})
	return p.tellInstalled(c, &result, err, "podman runs the hook for every container that it starts")
}

// tellInstalled tells what install did to one file; now is what holds if it had
// nothing to do.
func (p *program) tellInstalled(c *cli.Context, r *install.Result, err error, now string) error {
	if err != nil {
		return installFailure(err)
	}
	return p.printInstall(c, r, [3]string{"would write", "wrote", "is as wanted already; " + now})
}

// tellUninstalled tells what uninstall did to one file.
func (p *program) tellUninstalled(c *cli.Context, r *install.Result, err error) error {
	if err != nil {
		return installFailure(err)
	}
	return p.printInstall(c, r, [3]string{"would remove", "removed", "does not exist; there is nothing to undo"})
}

// hookPath returns where the hook's program is, of a command that takes no operands.
func hookPath(c *cli.Context) (string, error) {
	if _, err := operands(c, "no arguments", 0, 0); err != nil {
		return "", err
	}
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
func (p *program) printInstall(c *cli.Context, r *install.Result, words [3]string) error {
	dry := c.Bool(flagDryRun)
	if asJSON(c) {
		return p.printJSON(installDocument{Target: c.Command.Name, Path: r.Path, Changed: r.Changed, DryRun: dry, Content: string(r.Content)})
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
