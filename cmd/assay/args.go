package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts a command line into the order that the flag parser understands:
// it stops at the first argument that is no flag, people do not. Flags may stand
// anywhere before "--"; the common ones (those of the program itself) may also
// stand before the command. "help COMMAND" becomes "COMMAND --help", "--version"
// becomes "version".
//
// What is wrong with a command line is left in it, for the parser to report; if
// the last flag lacks its value, that is the only thing left to report.
func arrange(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	out, rest := args[:1:1], args[1:]
	if len(rest) > 0 && rest[0] == "help" {
		rest = append(slices.Clone(rest[1:]), "--help")
	}
	if len(rest) > 0 && rest[0] == "--version" {
		rest = append([]string{"version"}, rest[1:]...)
	}
	commands, known := app.Commands, app.Flags
	var path, common []string
	for len(rest) > 0 {
		word := rest[0]
		if isFlag(word) {
			n := flagWidth(known, rest)
			if findFlag(known, word) != nil {
				common = append(common, rest[:n]...)
			} else {
				path = append(path, word)
			}
			rest = rest[n:]
			continue
		}
		command := findCommand(commands, word)
		if command == nil {
			break
		}
		path, rest = append(path, word), rest[1:]
		if len(command.Subcommands) == 0 {
			return slices.Concat(out, path, common, arrangeLeaf(command.Flags, rest))
		}
		commands = command.Subcommands
	}
	return slices.Concat(out, common, path, rest)
}

// arrangeLeaf puts the flags of a command without subcommands before its
// arguments.
func arrangeLeaf(known []cli.Flag, args []string) []string {
	var flags, operands []string
	for len(args) > 0 {
		switch {
		case args[0] == "--":
			operands, args = append(operands, args[1:]...), nil
		case isHelp(args[0]):
			return args[:1] // the arguments no longer matter
		case lacksValue(known, args):
			return append(flags, args...)
		case isFlag(args[0]):
			n := flagWidth(known, args)
			flags, args = append(flags, args[:n]...), args[n:]
		default:
			operands, args = append(operands, args[0]), args[1:]
		}
	}
	return slices.Concat(flags, []string{"--"}, operands)
}

// isFlag reports whether word is a flag; "-" is a file name and "--" an end.
func isFlag(word string) bool {
	return len(word) > 1 && word[0] == '-' && word != "--"
}

// isHelp reports whether word asks for help.
func isHelp(word string) bool {
	return isFlag(word) && slices.Contains(cli.HelpFlag.Names(), strings.TrimLeft(word, "-"))
}

// flagWidth returns how many words the flag at the front of args takes, of those
// that are there.
func flagWidth(known []cli.Flag, args []string) int {
	if takesNext(known, args[0]) {
		return min(2, len(args))
	}
	return 1
}

// lacksValue reports whether args is one flag without the value that it takes.
func lacksValue(known []cli.Flag, args []string) bool {
	return len(args) == 1 && isFlag(args[0]) && takesNext(known, args[0])
}

// takesNext reports whether word is a flag whose value is the next word.
func takesNext(known []cli.Flag, word string) bool {
	if strings.Contains(word, "=") {
		return false
	}
	flag := findFlag(known, word)
	_, isBool := flag.(*cli.BoolFlag)
	return flag != nil && !isBool
}

// findFlag returns the flag that word, with its dashes and perhaps a value,
// stands for, or nil.
func findFlag(known []cli.Flag, word string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	i := slices.IndexFunc(known, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	return known[i]
}

// findCommand returns the command called name, or nil.
func findCommand(commands []*cli.Command, name string) *cli.Command {
	i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(name) })
	if i < 0 {
		return nil
	}
	return commands[i]
}
