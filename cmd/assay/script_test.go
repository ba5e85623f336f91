package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"assay": main})
}

// TestScripts runs testdata/script. Beside the usual commands there are:
//
//	agent healthy|unhealthy        starts an agent on $SOCK
//	agent append N...              gives it more records
//	agent dirty                    gives it the record of a writer
//	agent empty                    lets it have no verdicts
//	agent stop                     ends it
//	code N COMMAND...              runs COMMAND and expects exit code N
//	fifo FILE                      makes a FIFO
//	interrupt                      sends SIGINT to a scan that does not end by itself
//	follow INT|TERM|stop N I ARG.. runs "assay events --follow ARG..", reads N lines, appends
//	                               record I (again and again if N is 0), reads a line, then sends the
//	                               signal or stops the agent
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("SOCK", filepath.Join(env.WorkDir, "s"))
			env.Setenv("TZ", "UTC")
			env.Values[agentKey] = &agentHolder{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": agentCommand, "code": codeCommand, "fifo": fifoCommand, "follow": followCommand,
			"interrupt": interruptCommand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func codeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func fifoCommand(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(unix.Mkfifo(ts.MkAbs(args[0]), 0o600))
}
