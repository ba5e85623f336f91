package e2e

import (
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// wantRead fails t unless r is what `guest read` prints for these lines.
func wantRead(t *testing.T, r harness.Result, lines ...string) {
	t.Helper()
	want := strings.Join(lines, "\n") + "\n"
	if r.Stdout != want || r.Hung {
		t.Fatalf("want\n%sgot %s", want, r)
	}
}

// wantRefused fails t unless the container did not get to run its command.
func wantRefused(t *testing.T, r harness.Result, marker string) {
	t.Helper()
	if r.Code == 0 || r.Hung || strings.Contains(r.Stdout, marker) {
		t.Fatalf("want a refusal and no %q in the output: %s", marker, r)
	}
}

// TestCleanFile: what is clean reads as before, and nothing is denied.
func TestCleanFile(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{Args: []string{"cat", harness.CleanFile}, Gate: agent.Gate("")})
			if r.Code != 0 || r.Stdout != harness.CleanText {
				t.Fatalf("want the clean file: %s", r)
			}
		})
	}
	agent.AwaitIdle(t)
	s := agent.Status(t)
	if n := s.Denied(); n != 0 {
		t.Errorf("%d events were denied, want none", n)
	}
	if s.Reason("default", "clean") == 0 {
		t.Errorf("nothing was counted as clean: %+v", s.Tenants)
	}
}

// TestMaliciousInLowerLayer: a malicious file of a lower layer cannot be opened,
// its neighbours can.
func TestMaliciousInLowerLayer(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{
				Args: []string{"guest", "read", harness.BadFile, harness.NextToBad, harness.TopFile, harness.BadFile},
				Gate: agent.Gate(""),
			})
			wantRead(t, r,
				harness.BadFile+": EPERM", harness.NextToBad+": 10 bytes",
				harness.TopFile+": 18 bytes", harness.BadFile+": EPERM")
		})
	}
	record := agent.AwaitDenied(t, harness.BadFile)
	if record.Tenant != "default" || record.Op != "open" || record.Signature() == "" || record.PID == 0 {
		t.Errorf("the record does not name tenant, operation, signature and pid: %+v", record)
	}
}

// TestPrestartHook: the older hook stage guards just as well.
func TestPrestartHook(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines()[2:] {
		t.Run(e.Name(), func(t *testing.T) {
			gate := agent.Gate("")
			gate.Stage = "prestart"
			r := e.Run(t, harness.Spec{Args: []string{"guest", "read", harness.BadFile, harness.CleanFile}, Gate: gate})
			wantRead(t, r, harness.BadFile+": EPERM", harness.CleanFile+": 13 bytes")
		})
	}
}

// TestReadOnlyRootfs: a read-only root filesystem is guarded too.
func TestReadOnlyRootfs(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{
				Args: []string{"sh", "-c", "touch /data/x 2>/dev/null && echo writable; guest read $0 $1", harness.BadFile, harness.CleanFile},
				Gate: agent.Gate(""), ReadOnly: true,
			})
			wantRead(t, r, harness.BadFile+": EPERM", harness.CleanFile+": 13 bytes")
		})
	}
}
