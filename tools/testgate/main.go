// Command testgate runs `go test` and refuses a green result that hides
// something: a skipped test fails the run unless ASSAY_ALLOW_SKIP names it, and
// so does a run in which no test ran at all.
//
// It owns the judgement on a run. It must not own what is run: its arguments go
// to `go test` unchanged, and the Makefile says what they are.
//
//	ASSAY_ALLOW_SKIP='TestPodman*,TestClamd/hung' testgate -race ./...
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// allowSkip names the environment variable with the tests that may skip:
// patterns as of path.Match, separated by commas or spaces.
const allowSkip = "ASSAY_ALLOW_SKIP"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: that of `go test` if it is not 0, else 1 if the
// gate refuses the run.
func run(args []string, stdout, stderr io.Writer) int {
	allowed, err := parsePatterns(os.Getenv(allowSkip))
	if err != nil {
		fmt.Fprintf(stderr, "testgate: %s: %v\n", allowSkip, err)
		return 2
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...) //nolint:noctx // it ends with this process's group
	cmd.Stderr = stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		fmt.Fprintln(stderr, "testgate:", err)
		return 2
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(stderr, "testgate:", err)
		return 2
	}
	g := newGate(stdout)
	readErr := g.read(pipe)
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		g.summary(nil)
		fmt.Fprintln(stderr, "testgate: go test:", err)
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return code
		}
		return 1
	}
	if refusals := g.refusals(allowed); len(refusals) > 0 {
		g.summary(refusals)
		return 1
	}
	g.summary(nil)
	return 0
}
