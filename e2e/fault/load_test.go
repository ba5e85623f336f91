package fault

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestLoad: the load itself notices what it is there to notice: without an agent it
// reads bad bytes, with one it does not, and a stopped agent's openers are stuck.
func TestLoad(t *testing.T) {
	t.Run("ungated", func(t *testing.T) {
		report := Load{Opens: 40}.Start(t, suite, suite.Runc(), nil).Wait(t)
		if report.Total.Opens != 4*40 || report.Bad.BadBytes == 0 || report.Bad.Refused != 0 || report.Clean.BadBytes != 0 {
			t.Errorf("want every open and bad bytes of bad files alone: %v", report)
		}
	})
	for _, engine := range []harness.Engine{suite.Runc(), suite.Podman("crun")} {
		t.Run("gated/"+engine.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t))
			run := Load{Processes: 3}.Start(t, suite, engine, agent.Gate(""))
			run.Await(t, 0, 300)
			pids := run.PIDs(t)
			if len(pids) != 3 {
				t.Errorf("%d processes, want 3: %v", len(pids), pids)
			}

			agent.Signal(t, syscall.SIGSTOP)
			harness.Eventually(t, "openers are stuck", func() error {
				if len(run.StuckAmong(t, pids, 1)) == 0 {
					return errors.New("none is")
				}
				return nil
			})
			agent.Signal(t, syscall.SIGCONT)

			report := run.Stop(t)
			wantGuarded(t, report)
			if report.Clean.Refused > 0 || report.Bad.Opens == 0 {
				t.Errorf("want nothing refused but what is bad: %v", report)
			}
			agent.AwaitIdle(t)
		})
	}
}

// anyHash returns a configuration in which every file is read before it is judged, by
// the hash list alone, and which has these lines of policy.
func anyHash(t *testing.T, policy ...string) string {
	t.Helper()
	return harness.HashScanner(suite.AnyHash(t)) + "tenants:\n" + harness.Tenant("default", "{}", "hashes", policy...)
}

// wantGuarded fails t if a bad byte was read, or if an open ended in a way that the
// gate has no part in.
func wantGuarded(t *testing.T, report Report) {
	t.Helper()
	if report.Total.BadBytes > 0 || report.Bad.Read > 0 {
		t.Errorf("bad content was let through: %v", report)
	}
	if len(report.Total.Other) > 0 {
		t.Errorf("opens failed otherwise than by a refusal: %v", fmt.Sprint(report.Total.Other))
	}
	if report.Total.Opens == 0 {
		t.Error("nothing was opened")
	}
}
