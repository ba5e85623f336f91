package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/audit"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script that completes this program's commands in a shell",
		ArgsUsage: "bash|zsh|fish",
		Description: `Prints a script for the shell to load. It knows all commands and flags by
itself and never runs this program.

Examples:
  source <(assay completion bash)
  assay completion bash > /etc/bash_completion.d/assay
  assay completion zsh > /usr/local/share/zsh/site-functions/_assay
  assay completion fish > ~/.config/fish/completions/assay.fish`,
		Action: p.completion,
	}
}

func (p *program) completion(c *cli.Context) error {
	const remedy = "the shells are bash, zsh and fish"
	args, err := operands(c, "a shell: bash, zsh or fish", 1, 1)
	if err != nil {
		return err
	}
	words := completionWords(c.App)
	var script string
	switch args[0] {
	case "bash":
		script = bashCompletion(words)
	case "zsh":
		script = zshCompletion(words)
	case "fish":
		script = fishCompletion(words)
	default:
		return usage(remedy, "no completion for shell %q", args[0])
	}
	_, err = io.WriteString(p.stdout, script)
	return err
}

// A completionNode is what may follow one command.
type completionNode struct {
	path     string // "assay policy check"
	commands []*cli.Command
	flags    []cli.Flag
}

// completionWords lists the command tree, the program itself first.
func completionWords(app *cli.App) []completionNode {
	nodes := []completionNode{{path: app.Name, commands: app.Commands, flags: withoutHelp(app.Flags)}}
	for i := 0; i < len(nodes); i++ {
		for _, c := range nodes[i].commands {
			nodes = append(nodes, completionNode{
				path: nodes[i].path + " " + c.Name, commands: c.Subcommands, flags: withoutHelp(c.Flags),
			})
		}
	}
	return nodes
}

// withoutHelp leaves out the flag that the parser adds to commands on their way.
func withoutHelp(flags []cli.Flag) []cli.Flag {
	return slices.DeleteFunc(slices.Clone(flags), func(f cli.Flag) bool {
		return slices.Contains(cli.HelpFlag.Names(), f.Names()[0])
	})
}

// words returns everything that may follow the command: subcommands, flags and
// the words that it takes as arguments.
func (n *completionNode) words() []string {
	words := commandNames(n.commands)
	words = append(words, argumentWords(n.path)...)
	for _, f := range n.flags {
		for _, name := range f.Names() {
			words = append(words, dashed(name))
		}
	}
	return append(words, "--help")
}

// argumentWords returns the fixed words that a command takes as arguments.
func argumentWords(path string) []string {
	switch path {
	case "assay completion":
		return []string{"bash", "zsh", "fish"}
	}
	return nil
}

// flagWords returns the fixed values of the flag called name.
func flagWords(name string) []string {
	switch name {
	case flagOutput:
		return []string{outputTable, outputJSON}
	case flagDecision:
		return decisions()
	case flagOp:
		return audit.Operations()
	case flagBy:
		return verdictSections()
	case flagOnAgentMissing:
		return onAgentMissing()
	}
	return nil
}

// choices returns every flag with fixed values, once, with all its names.
func choices(nodes []completionNode) []cli.Flag {
	var found []cli.Flag
	for _, n := range nodes {
		for _, f := range n.flags {
			known := slices.ContainsFunc(found, func(g cli.Flag) bool { return g.Names()[0] == f.Names()[0] })
			if !known && flagWords(f.Names()[0]) != nil {
				found = append(found, f)
			}
		}
	}
	return found
}

// dashedNames returns a flag's names as they are typed.
func dashedNames(f cli.Flag) []string {
	names := slices.Clone(f.Names())
	for i, name := range names {
		names[i] = dashed(name)
	}
	return names
}

// commandPaths returns the paths of all commands but the program itself, quoted
// and joined for a case statement.
func commandPaths(nodes []completionNode) string {
	var paths []string
	for _, n := range nodes[1:] {
		paths = append(paths, `"`+n.path+`"`)
	}
	return strings.Join(paths, "|")
}

func bashCompletion(nodes []completionNode) string {
	var b strings.Builder
	b.WriteString(`# bash completion for assay
_assay() {
    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" path=assay word words
    COMPREPLY=()
    case "$prev" in
`)
	for _, f := range choices(nodes) {
		fmt.Fprintf(&b, "        %s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n",
			strings.Join(dashedNames(f), "|"), strings.Join(flagWords(f.Names()[0]), " "))
	}
	fmt.Fprintf(&b, `    esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $word" in
            %s) path="$path $word" ;;
        esac
    done
    case "$path" in
`, commandPaths(nodes))
	for _, n := range nodes {
		fmt.Fprintf(&b, "        %q) words=%q ;;\n", n.path, strings.Join(n.words(), " "))
	}
	b.WriteString(`    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _assay assay
`)
	return b.String()
}

// zshCompletion calls the command so far "at", since "path" is tied to PATH there.
func zshCompletion(nodes []completionNode) string {
	var b strings.Builder
	b.WriteString(`#compdef assay
# zsh completion for assay
_assay() {
    local cur="${words[CURRENT]}" prev="${words[CURRENT-1]}" at=assay word
    case "$prev" in
`)
	for _, f := range choices(nodes) {
		fmt.Fprintf(&b, "        %s) compadd -- %s; return ;;\n",
			strings.Join(dashedNames(f), "|"), strings.Join(flagWords(f.Names()[0]), " "))
	}
	fmt.Fprintf(&b, `    esac
    for word in "${(@)words[2,CURRENT-1]}"; do
        case "$at $word" in
            %s) at="$at $word" ;;
        esac
    done
    case "$at" in
`, commandPaths(nodes))
	for _, n := range nodes {
		fmt.Fprintf(&b, "        %q) compadd -- %s ;;\n", n.path, strings.Join(n.words(), " "))
	}
	b.WriteString(`    esac
    [[ "$cur" == -* ]] || _files
}
if [[ "$funcstack[1]" == _assay ]]; then
    _assay "$@"
else
    compdef _assay assay
fi
`)
	return b.String()
}

func fishCompletion(nodes []completionNode) string {
	var b strings.Builder
	b.WriteString(`# fish completion for assay
function __assay_at
    set -l path assay
    for word in (commandline -opc)[2..-1]
        switch "$path $word"
`)
	fmt.Fprintf(&b, "            case %s\n", strings.ReplaceAll(commandPaths(nodes), "|", " "))
	b.WriteString(`                set path "$path $word"
        end
    end
    test "$path" = "$argv[1]"
end
`)
	for _, n := range nodes {
		at := fmt.Sprintf("complete -c assay -n %q", fmt.Sprintf("__assay_at '%s'", n.path))
		for _, c := range n.commands {
			fmt.Fprintf(&b, "%s -f -a %s -d %q\n", at, c.Name, c.Usage)
		}
		if words := argumentWords(n.path); words != nil {
			fmt.Fprintf(&b, "%s -f -a %q\n", at, strings.Join(words, " "))
		}
		for _, f := range n.flags {
			b.WriteString(at + fishFlag(f) + "\n")
		}
	}
	return b.String()
}

// fishFlag returns the part of a fish completion that describes a flag.
func fishFlag(f cli.Flag) string {
	var b strings.Builder
	for _, name := range f.Names() {
		if len(name) == 1 {
			fmt.Fprintf(&b, " -s %s", name)
		} else {
			fmt.Fprintf(&b, " -l %s", name)
		}
	}
	if _, isBool := f.(*cli.BoolFlag); !isBool {
		b.WriteString(" -r")
	}
	if words := flagWords(f.Names()[0]); words != nil {
		fmt.Fprintf(&b, " -f -a %q", strings.Join(words, " "))
	}
	if doc, ok := f.(cli.DocGenerationFlag); ok {
		fmt.Fprintf(&b, " -d %q", strings.ReplaceAll(doc.GetUsage(), "`", ""))
	}
	return b.String()
}
