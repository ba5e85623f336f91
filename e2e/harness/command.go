package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// patience is how long a command may take before it counts as hung. Nothing in
// the suite takes more than a few seconds.
const patience = 90 * time.Second

// A Result is what a finished command said.
type Result struct {
	Code           int // exit code; -1 if a signal ended it or it hung
	Stdout, Stderr string
	Hung           bool // it was killed because it did not end
}

// String describes the result for a failed test's message.
func (r Result) String() string {
	return fmt.Sprintf("exit code %d (hung: %tb)\nstdout: %s\nstderr: %s", r.Code, r.Hung, r.Stdout, r.Stderr)
}

// run runs a command to its end with env added to the environment.
func run(ctx context.Context, env []string, name string, args ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Hung: ctx.Err() != nil}
	if cmd.ProcessState == nil {
		return r, fmt.Errorf("start %s: %w", name, err)
	}
	r.Code = cmd.ProcessState.ExitCode()
	if err != nil && !errors.As(err, new(*exec.ExitError)) && !r.Hung {
		return r, fmt.Errorf("run %s: %w", name, err)
	}
	return r, nil
}

// must runs a command that has to succeed and returns its output.
func must(ctx context.Context, env []string, name string, args ...string) (string, error) {
	r, err := run(ctx, env, name, args...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("%s %q: %s", name, args, r)
	}
	return r.Stdout, nil
}

// Command runs a command on the host to its end.
func Command(tb testing.TB, name string, args ...string) Result {
	tb.Helper()
	r, err := run(tb.Context(), nil, name, args...)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}
