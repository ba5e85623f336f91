package e2e

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestUngated shows that the ground under all other tests is sound: without an
// agent, every engine runs a container that reads the malicious file too.
func TestUngated(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			r := e.Run(t, harness.Spec{Args: []string{"cat", harness.CleanFile, harness.BadFile}})
			want := harness.CleanText + string(harness.EICAR())
			if r.Code != 0 || r.Stdout != want {
				t.Fatalf("want both files: %s", r)
			}
		})
	}
}

// TestUngatedLifecycle runs the operations that other tests build on.
func TestUngatedLifecycle(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			c := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}})
			if pid := c.PID(t); pid <= 1 {
				t.Fatalf("pid %d", pid)
			}
			if r := c.Exec(t, "guest", "read", harness.ListedTool+"x", harness.TopFile); r.Code != 1 ||
				r.Stdout != harness.ListedTool+"x: ENOENT\n"+harness.TopFile+": 18 bytes\n" {
				t.Fatalf("exec: %s", r)
			}
			c.Kill(t)
			c.Remove(t)
		})
	}
}
