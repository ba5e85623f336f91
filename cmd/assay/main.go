// Command assay is the operator's view of a node: what the agent guards, what it
// decided, what is wrong with the machine, and a way to ask the agent about a
// file.
//
// It owns the command line: commands, flags, tables, JSON documents and exit
// codes, all of them described in docs/cli.md. It must not own decisions or
// knowledge of the kernel: internal/api talks to the agent, internal/doctor
// examines the node, internal/tenant reads configuration, internal/install
// writes the runtimes' files.
package main

import (
	"context"
	"io"
	"os"
	"time"
)

func main() {
	p := &program{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		now:    time.Now,
		colour: wantsColour(os.Stdout, os.Getenv),

		interactive: wantsProgress(os.Stderr, os.Getenv),
	}
	os.Exit(p.run(context.Background(), os.Args))
}

// A program is one invocation and the world around it.
type program struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time
	colour bool // stdout is a terminal that may be coloured

	interactive bool // stderr is a terminal on which a bar can move
}

// run executes the command line args, whose first element is the program's
// name, and returns the exit code.
func (p *program) run(ctx context.Context, args []string) int {
	app := p.app()
	err := app.RunContext(ctx, arrange(app, args))
	return p.report(err)
}
