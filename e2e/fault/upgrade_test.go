package fault

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// upgrades is how often the agent is replaced.
const upgrades = 10

// TestUpgrade: under a load, the agent is replaced by another version and back. No
// opener is refused or sees anything bad, containers that started or ended meanwhile
// are known, and what was remembered still is.
func TestUpgrade(t *testing.T) {
	newer := buildAnother(t)
	agent := suite.StartAgent(t, anyHash(t, `scanAhead: "off"`))
	before := agent.Status(t).Version
	runs := []*Run{
		Load{}.Start(t, suite, suite.Runc(), agent.Gate("")),
		Load{}.Start(t, suite, suite.Podman("crun"), agent.Gate("")),
	}
	var instants []int64
	for i := range upgrades {
		goes := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
		instants = append(instants, Now())
		agent.Stop(t)
		goes.Kill(t)
		goes.Remove(t)
		comes := make(chan harness.Result, 1)
		go func() {
			comes <- suite.Runc().Run(t, harness.Spec{Args: []string{"guest", "read", harness.CleanFile, harness.BadFile}, Gate: agent.Gate("")})
		}()
		binary, want := newer, "newer"
		if i%2 == 1 {
			binary, want = suite.Bin("assayd"), before
		}
		agent.Use(binary)
		agent.Again(t)
		if r := <-comes; r.Stdout != harness.CleanFile+": 13 bytes\n"+harness.BadFile+": EPERM\n" {
			t.Errorf("a container that started while there was no agent: %s", r)
		}
		s := agent.Status(t)
		if s.Version != want || s.Store.Restored == 0 {
			t.Errorf("version %s with %d verdicts, want version %s and those of before", s.Version, s.Store.Restored, want)
		}
		for _, c := range s.Containers {
			if c.ID == goes.ID() {
				t.Error("a container that has ended is taken over")
			}
		}
	}
	for _, run := range runs {
		waits := run.Spanning(t, instants)
		report := run.Stop(t)
		wantGuarded(t, report)
		if report.Clean.Refused > 0 {
			t.Errorf("openers of clean files were refused: %v", report)
		}
		t.Logf("%v", report)
		t.Logf("%d opens were under way when the agent was told to stop; from then until their answer: p50 %v, p99 %v, longest %v",
			len(waits), percentile(waits, 0.5), percentile(waits, 0.99), percentile(waits, 1))
	}
}

// buildAnother builds the agent with another version.
func buildAnother(t *testing.T) string {
	t.Helper()
	dir := suite.Scratch(t)
	root := filepath.Dir(filepath.Dir(suite.Bin("assayd")))
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-X main.version=newer", "-o", dir, "./cmd/assayd")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another version: %v\n%s", err, out)
	}
	return filepath.Join(dir, "assayd")
}
