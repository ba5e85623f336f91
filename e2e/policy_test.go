package e2e

import (
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestAuditMode: everything is allowed, and what was found is on record.
func TestAuditMode(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t, "mode: audit"))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{Args: []string{"guest", "read", harness.BadFile}, Gate: agent.Gate("")})
			wantRead(t, r, harness.BadFile+": 68 bytes")
		})
	}
	agent.AwaitRecord(t, "the malicious file that was allowed", func(r harness.Record) bool {
		return r.Path == harness.BadFile && r.Decision == "allow" && r.Verdict == "malicious" && r.Reason == "audit-mode"
	})
}

// TestTwoTenants: the hook's namespace selects the tenant, and with it the policy.
func TestTwoTenants(t *testing.T) {
	agent := suite.StartAgent(t, harness.HashScanner(suite.Image(t).Hashes)+"tenants:\n"+
		harness.Tenant("strict", `{namespaces: ["pay-*"]}`, "hashes")+
		harness.Tenant("lenient", "{}", "hashes", "mode: audit"))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			args := []string{"guest", "read", harness.BadFile}
			strict := e.Run(t, harness.Spec{Args: args, Gate: agent.Gate("pay-eu")})
			wantRead(t, strict, harness.BadFile+": EPERM")
			lenient := e.Run(t, harness.Spec{Args: args, Gate: agent.Gate("blog")})
			wantRead(t, lenient, harness.BadFile+": 68 bytes")
		})
	}
	if r := agent.AwaitDenied(t, harness.BadFile); r.Tenant != "strict" || r.Container.Namespace != "pay-eu" {
		t.Errorf("denied for tenant %q in namespace %q, want strict and pay-eu", r.Tenant, r.Container.Namespace)
	}
	if n := agent.Status(t).Reason("lenient", "malicious"); n != 0 {
		t.Errorf("the lenient tenant denied %d files", n)
	}
}

// TestExempt: containers that the platform exempts are left alone.
func TestExempt(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t)+"exempt:\n  - {namespaces: [platform]}\n")
	args := []string{"guest", "read", harness.BadFile}
	wantRead(t, suite.Runc().Run(t, harness.Spec{Args: args, Gate: agent.Gate("platform")}), harness.BadFile+": 68 bytes")
	wantRead(t, suite.Runc().Run(t, harness.Spec{Args: args, Gate: agent.Gate("shop")}), harness.BadFile+": EPERM")
}

// TestReload: a good file takes effect for new containers, a bad one changes
// nothing and says why.
func TestReload(t *testing.T) {
	none := suite.HostDirectory(t, map[string][]byte{"none.hsb": nil})
	agent := suite.StartAgent(t, harness.HashScanner(none+"/none.hsb")+"tenants:\n"+harness.Tenant("default", "{}", "hashes"))
	listed := harness.Spec{Args: []string{harness.ListedTool, "echo", pwned}, Gate: agent.Gate("")}

	if r := suite.Runc().Run(t, listed); r.Code != 0 || r.Stdout != pwned+"\n" {
		t.Fatalf("want a program that no list names to run: %s", r)
	}
	if s := agent.Reload(t, suite.Hashes(t)); s.ReloadError != "" {
		t.Fatalf("a good file was refused: %s", s.ReloadError)
	}
	wantRefused(t, suite.Runc().Run(t, listed), pwned)

	s := agent.Reload(t, suite.Hashes(t, "mode: audit", "colour: red"))
	if !strings.Contains(s.ReloadError, "colour") || !strings.Contains(s.ReloadError, "assay.yaml:") {
		t.Errorf("want an error with file, line and the unknown key: %q", s.ReloadError)
	}
	wantRefused(t, suite.Runc().Run(t, listed), pwned)

	if s := agent.Reload(t, suite.Hashes(t)); s.ReloadError != "" {
		t.Errorf("the error outlives a good file: %s", s.ReloadError)
	}
}
