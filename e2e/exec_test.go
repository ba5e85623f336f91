package e2e

import (
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

const pwned = "pwned"

// TestListedEntrypoint: a container whose entrypoint is malicious never starts.
func TestListedEntrypoint(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{Args: []string{harness.ListedTool, "echo", pwned}, Gate: agent.Gate("")})
			wantRefused(t, r, pwned)
			if !strings.Contains(strings.ToLower(r.Stderr), "operation not permitted") {
				t.Errorf("want the runtime to say why it could not execute the entrypoint: %s", r)
			}
		})
	}
	record := agent.AwaitDenied(t, harness.ListedTool)
	if got := record.Signature(); got != "Assay.Test.Tool" {
		t.Errorf("signature %q, want Assay.Test.Tool", got)
	}
}

// TestListedProgram: a listed program cannot be executed from a shell, and no
// copy of it, moved or linked, can either; nor a script that is listed, or one
// whose interpreter is.
func TestListedProgram(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	tests := []struct{ name, script string }{
		{"directly", "$TOOL echo pwned"},
		{"copied", "cp $TOOL /tmp/busybox && /tmp/busybox echo pwned"},
		{"renamed", "mv $TOOL /tmp/busybox && /tmp/busybox echo pwned"},
		{"hard link", "ln $TOOL /opt/busybox && /opt/busybox echo pwned"},
		{"symbolic link", "ln -s $TOOL /opt/busybox && /opt/busybox echo pwned"},
		{"made writable first", "chmod 777 $TOOL && touch $TOOL && $TOOL echo pwned"},
		{"listed script", harness.ListedScript + " && echo pwned"},
		{"listed script as an argument", "sh " + harness.ListedScript + " && echo pwned"},
		{"script with a listed interpreter", harness.ViaListed + " && echo pwned"},
	}
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					script := "TOOL=" + harness.ListedTool + "; " + tt.script
					wantRefused(t, e.Run(t, harness.Spec{Args: []string{"sh", "-c", script}, Gate: agent.Gate("")}), pwned)
				})
			}
		})
	}
	agent.AwaitDenied(t, harness.ListedTool)
	agent.AwaitDenied(t, harness.ListedScript)
}

// TestListedProgramRuns shows that the programs above run where nobody objects:
// otherwise their refusal would prove nothing.
func TestListedProgramRuns(t *testing.T) {
	e := suite.Runc()
	for _, args := range [][]string{
		{harness.ListedTool, "echo", pwned},
		{"sh", "-c", harness.ListedScript + " && sh " + harness.ListedScript + " && " + harness.ViaListed + " && echo pwned"},
	} {
		r := e.Run(t, harness.Spec{Args: args})
		if r.Code != 0 || !strings.Contains(r.Stdout, pwned) {
			t.Errorf("%q: %s", args, r)
		}
	}
}

// TestExecSession: a command that is started in a running container is gated as
// the container is.
func TestExecSession(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			c := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			wantRead(t, c.Exec(t, "guest", "read", harness.BadFile, harness.CleanFile),
				harness.BadFile+": EPERM", harness.CleanFile+": 13 bytes")
			wantRefused(t, c.Exec(t, harness.ListedTool, "echo", pwned), pwned)
		})
	}
}
