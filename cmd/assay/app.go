package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/api"
)

// The names of the common flags.
const (
	flagOutput = "output"
	flagSocket = "socket"
)

// The values of --output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

const appDescription = `Assay guards containers: nothing in a guarded container is opened or executed
before a scanner has looked at it. This program asks the node's agent, assayd,
what it guards and decided, and examines the node itself.

Most commands need root, because only root may use the agent's socket.

Exit codes: 0 fine; 1 a finding (malware, something unhealthy); 2 the command
line or the configuration is wrong; 3 the agent cannot be reached.

Examples:
  assay doctor                  is this machine ready, and if not, what to do
  assay status                  what the agent guards now
  assay events --follow         every decision as it is made
  assay explain --container web /bin/sh    what the next open of a file is answered
  assay verdicts                what is known, by layer and by scanner
  assay check download.tar.gz   ask the agent's scanners about one file
  assay scan image nginx        scan before anybody opens it
  assay release --all           the node hangs: let everything go on unguarded
  assay help COMMAND            more about one command`

// app returns the command tree.
func (p *program) app() *cli.App {
	app := &cli.App{
		Name:            "assay",
		HelpName:        "assay",
		Usage:           "look after the on-access malware gate for containers",
		UsageText:       "assay [--socket PATH] [-o table|json] COMMAND [options] [arguments]",
		Description:     appDescription,
		Flags:           commonFlags(),
		HideVersion:     true,
		HideHelpCommand: true,
		Reader:          p.stdin,
		Writer:          p.stdout,
		ErrWriter:       p.stderr,
		Action:          missingCommand,
		OnUsageError:    usageError,
		ExitErrHandler:  func(*cli.Context, error) {},
		Commands: []*cli.Command{
			p.statusCommand(), p.doctorCommand(), p.eventsCommand(), p.explainCommand(), p.verdictsCommand(),
			p.checkCommand(), p.scanCommand(), p.policyCommand(), p.releaseCommand(),
			p.installCommand(), p.uninstallCommand(), p.nriLaunchCommand(), p.completionCommand(), p.versionCommand(),
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives a command and those below it what all commands have in common.
func prepare(c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	if len(c.Subcommands) > 0 {
		c.Action = missingCommand
		for _, s := range c.Subcommands {
			prepare(s)
		}
		return
	}
	c.Flags = append(c.Flags, commonFlags()...)
	c.Before = checkOutput
}

// commonFlags returns a new set of the flags that every command takes; arrange
// passes those given before the command on to it.
func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: flagOutput, Aliases: []string{"o"}, Value: outputTable,
			Usage: "print a `FORMAT`: table for people, json for programs",
		},
		&cli.StringFlag{
			Name: flagSocket, Value: api.DefaultSocket,
			Usage: "`PATH` of the agent's socket",
		},
	}
}

// checkOutput refuses unknown values of --output.
func checkOutput(c *cli.Context) error {
	switch format := c.String(flagOutput); format {
	case outputTable, outputJSON:
		return nil
	default:
		return usage("use -o table or -o json", "unknown output format %q", format)
	}
}

// asJSON reports whether -o json was asked for.
func asJSON(c *cli.Context) bool { return c.String(flagOutput) == outputJSON }

// operands returns the arguments of a command that takes from least to most of
// them (most < 0: any number), called what.
func operands(c *cli.Context, what string, least, most int) ([]string, error) {
	args := c.Args().Slice()
	remedy := fmt.Sprintf("see %q", c.Command.HelpName+" --help")
	switch {
	case len(args) < least:
		return nil, usage(remedy, "%q needs %s", c.Command.HelpName, what)
	case most == 0 && len(args) > 0:
		return nil, usage(remedy, "%q takes no arguments, but got %q", c.Command.HelpName, args[0])
	case most > 0 && len(args) > most:
		return nil, usage(remedy, "%q takes %s, but also got %q", c.Command.HelpName, what, args[most])
	}
	return args, nil
}

// missingCommand is the action of everything that needs a subcommand and got
// none, or one that does not exist.
func missingCommand(c *cli.Context) error {
	self, commands := c.Command.HelpName, c.Command.Subcommands
	if c.Command.Name == c.App.Name {
		commands = c.App.Commands
	}
	names := commandNames(commands)
	if !c.Args().Present() {
		return usage(fmt.Sprintf("see %q", self+" --help"), "%q needs a command: %s", self, strings.Join(names, ", "))
	}
	word := c.Args().First()
	remedy := fmt.Sprintf("the commands are %s; see %q", strings.Join(names, ", "), self+" --help")
	if guess := closest(word, names); guess != "" {
		remedy = fmt.Sprintf("did you mean %q? See %q", self+" "+guess, self+" --help")
	}
	return usage(remedy, "unknown command %q", self+" "+word)
}

// commandNames returns the names of commands, in order.
func commandNames(commands []*cli.Command) []string {
	names := make([]string, len(commands))
	for i, c := range commands {
		names[i] = c.Name
	}
	return names
}

// usageError turns what the flag parser has to say into a failure that says what
// to do.
func usageError(c *cli.Context, err error, _ bool) error {
	help := fmt.Sprintf("see %q", c.Command.HelpName+" --help")
	word, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		return usage(help, "%w", err)
	}
	word, _, _ = strings.Cut(strings.TrimLeft(word, "-"), "=")
	remedy := help
	if guess := closest(word, flagNames(c.Command.Flags)); guess != "" {
		remedy = fmt.Sprintf("did you mean %s? %s", dashed(guess), strings.ToUpper(help[:1])+help[1:])
	}
	return usage(remedy, "unknown flag %s of %q", dashed(word), c.Command.HelpName)
}

// flagNames returns every name of every flag.
func flagNames(flags []cli.Flag) []string {
	var names []string
	for _, f := range flags {
		names = append(names, f.Names()...)
	}
	return slices.Compact(names)
}

// dashed returns a flag's name as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}
