package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/keeper"
)

// keeperMain runs a command line and returns the exit code and both outputs.
func keeperMain(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// TestHelp: help and version are what was asked for, so they go to standard output.
func TestHelp(t *testing.T) {
	for _, flag := range []string{"--help", "-h"} {
		if code, stdout, stderr := keeperMain(flag); code != 0 || stdout != help || stderr != "" {
			t.Errorf("%s: exit code %d, %q, %q", flag, code, stdout, stderr)
		}
	}
	for _, flag := range []string{"--socket", "--until-idle", "--version", defaultSocket, "Exit codes"} {
		if !strings.Contains(help, flag) {
			t.Errorf("the help does not tell of %s", flag)
		}
	}
	if code, stdout, stderr := keeperMain("--version"); code != 0 || stdout != "assay-keeper devel\n" || stderr != "" {
		t.Errorf("--version: exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestWrongUsage: a command line that is wrong ends with 2, and one line that says why.
func TestWrongUsage(t *testing.T) {
	tests := []struct {
		args []string
		says string
	}{
		{[]string{"--colour"}, "colour"},
		{[]string{"now"}, `unexpected argument "now"`},
		{[]string{"--socket"}, "socket"},
		{[]string{"--socket", "keeper.sock"}, `--socket "keeper.sock" is not an absolute path`},
		{[]string{"--socket", ""}, "not an absolute path"},
		{[]string{"--until-idle=perhaps"}, "perhaps"},
		{[]string{"--version", "now"}, `unexpected argument "now"`},
	}
	for _, tt := range tests {
		code, stdout, stderr := keeperMain(tt.args...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q, want 2 and %q", tt.args, code, stdout, stderr, tt.says)
		}
	}
}

// TestKernelSecondKeeper: a keeper that finds another one at its socket ends with 1.
func TestKernelSecondKeeper(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	ln, err := keeper.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	code, stdout, stderr := keeperMain("--socket", socket)
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "assay-keeper: another keeper is at work: "+socket) {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := keeperMain("--socket", filepath.Join(socket, "below", "a.sock")); code != exitFailed || !strings.Contains(stderr, "not a directory") {
		t.Errorf("a socket below a socket: exit code %d, %q", code, stderr)
	}
}

// TestKernelUntilIdle: a keeper with nothing to keep ends by itself, with 0.
func TestKernelUntilIdle(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "new", "keeper.sock")
	code, stdout, stderr := keeperMain("--until-idle", "--socket", socket)
	if code != 0 || stdout != "" || !strings.Contains(stderr, "nothing to keep") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}
