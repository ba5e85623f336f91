package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

// startClamd starts a clamd that knows the test image's marker, and nothing else.
func startClamd(t *testing.T) *clamdtest.Instance {
	t.Helper()
	name, body := harness.ClamSignature()
	return clamdtest.Start(t, clamdtest.Options{Signatures: []clamdtest.Signature{{Name: name, Content: body}}})
}

// clamdConfig returns a configuration with clamd at socket as the only scanner.
// Nothing is scanned before it is opened: these tests want openers to wait for clamd.
func clamdConfig(socket string, policy ...string) string {
	policy = append(policy, `scanAhead: "off"`)
	return harness.ClamdScanner(socket) + "tenants:\n" + harness.Tenant("default", "{}", "clamav", policy...)
}

// signal sends a signal to clamd, and makes sure that it goes on in the end.
func signal(t *testing.T, clamd *clamdtest.Instance, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(clamd.PID(), sig); err != nil {
		t.Fatalf("%v to clamd: %v", sig, err)
	}
}

// TestClamd: a real clamd decides, over descriptor passing.
func TestClamd(t *testing.T) {
	clamd := startClamd(t)
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket()))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{Args: []string{"guest", "read", harness.ClamFile, harness.NextToBad}, Gate: agent.Gate("")})
			wantRead(t, r, harness.ClamFile+": EPERM", harness.NextToBad+": 10 bytes")
		})
	}
	name, _ := harness.ClamSignature()
	if got := agent.AwaitDenied(t, harness.ClamFile).Signature(); !strings.HasPrefix(got, name) {
		t.Errorf("signature %q, want %s", got, name)
	}
	agent.AwaitRecord(t, "the clean file", func(r harness.Record) bool {
		return r.Path == harness.NextToBad && r.Decision == "allow" && r.Verdict == "clean" && r.Reason == "clean"
	})
}

// TestScannerDown: with no scanner to ask, onError decides, and says so.
func TestScannerDown(t *testing.T) {
	nobody := filepath.Join(suite.Scratch(t), "clamd.ctl")
	read := []string{"guest", "read", harness.CleanFile}
	t.Run("deny", func(t *testing.T) {
		agent := suite.StartAgent(t, clamdConfig(nobody, "onError: deny"))
		wantRefused(t, suite.Runc().Run(t, harness.Spec{Args: read, Gate: agent.Gate("")}), "13 bytes")
		agent.AwaitRecord(t, "a denial for want of a scanner", func(r harness.Record) bool {
			return r.Decision == "deny" && r.Verdict == "error" && r.Reason == "error"
		})
		if s := agent.Status(t); s.Healthy || len(s.Problems) == 0 {
			t.Errorf("the agent calls itself healthy: %+v", s)
		}
	})
	t.Run("allow", func(t *testing.T) {
		agent := suite.StartAgent(t, clamdConfig(nobody, "onError: allow"))
		wantRead(t, suite.Runc().Run(t, harness.Spec{Args: read, Gate: agent.Gate("")}), harness.CleanFile+": 13 bytes")
		agent.AwaitIdle(t)
		s := agent.Status(t)
		if s.Reason("default", "error") == 0 || s.Tenants[0].Unscanned == 0 {
			t.Errorf("what was allowed unscanned is not counted: %+v", s.Tenants)
		}
	})
}

// TestScannerDies: a clamd that dies while it scans is an error, not an answer;
// when it is back, so is the gate.
func TestScannerDies(t *testing.T) {
	clamd := startClamd(t)
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "onError: deny", "deadline: 60s", "kernelMarks: \"off\""))
	s := startStepper(t, agent, `try() { if read line < "$1"; then echo read; else echo refused; fi 2>/dev/null; }
		read go < /vol/go1
		try /data/many/00
		read go < /vol/go2
		try /data/many/00
		try `+harness.ClamFile, nil)

	s.stepWithout(t, clamd)
	awaitWaiting(t, agent)
	clamd.Kill(t)
	agent.AwaitRecord(t, "the scan that clamd did not survive", func(r harness.Record) bool {
		return r.Path == "/data/many/00" && r.Decision == "deny" && r.Verdict == "error" && r.Reason == "error"
	})

	clamd.Restart(t)
	harness.Eventually(t, "the agent finds the new clamd", func() error {
		if s := agent.Status(t); !s.Scanners[0].Healthy {
			return errors.New(s.Scanners[0].Error)
		}
		return nil
	})
	s.step(t)
	if r := <-s.result; r.Stdout != "refused\nread\nrefused\n" {
		t.Errorf("want a refusal without clamd, then a clean and a malicious file: %s", r)
	}
}
