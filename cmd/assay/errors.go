package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/assay-project/assay/internal/spelling"
)

// The exit codes, part of the contract with scripts.
const (
	exitFine        = 0
	exitFinding     = 1 // malware was found, or something is unhealthy
	exitUsage       = 2 // the command line or the configuration is wrong
	exitUnreachable = 3 // the agent could not be reached
)

// A failure ends the program with a code. What a person reads is err, and under
// it the remedy.
type failure struct {
	code   int
	err    error
	remedy string // what to do about it; "" if err says so itself
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// errFinding ends the program with exitFinding after the output has said what
// was found: nothing is left to print.
var errFinding = errors.New("finding")

// errReported ends the program with exitUsage after the output has said why.
var errReported = errors.New("reported")

// usage returns a failure of the command line.
func usage(remedy, format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), remedy: remedy}
}

// report prints what err has to say and returns the exit code that it stands
// for. An error without a code of its own comes from the output or the operating
// system, and counts as a finding: something is not as it should be.
func (p *program) report(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errFinding):
		return exitFinding
	case errors.Is(err, errReported):
		return exitUsage
	case errors.As(err, &f):
		p.complain(f.err, f.remedy)
		return f.code
	default:
		p.complain(err, "")
		return exitFinding
	}
}

// complain prints an error and its remedy to stderr. Both may quote what
// strangers wrote, so they are made printable first.
func (p *program) complain(err error, remedy string) {
	for i, line := range strings.Split(err.Error(), "\n") {
		prefix := "assay: "
		if i > 0 {
			prefix = "       "
		}
		_, _ = fmt.Fprintf(p.stderr, "%s%s\n", prefix, printable(line))
	}
	if remedy != "" {
		_, _ = fmt.Fprintf(p.stderr, "remedy: %s\n", printable(remedy))
	}
}

// closest returns the candidate that word is probably a misspelling of, or "".
func closest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+2
	for _, c := range candidates {
		if d := spelling.Distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}
