package e2e

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestWrittenInContainer: what a container writes itself is judged when it is
// opened again, under every name that it gets.
func TestWrittenInContainer(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	tests := []struct {
		name, script string
		want         []string
	}{
		{"read", `guest read "$1"`, []string{"/tmp/w: EPERM"}},
		{"renamed", `mv "$1" /tmp/m; guest read /tmp/m`, []string{"/tmp/m: EPERM"}},
		{"hard link", `ln "$1" /tmp/l; guest read /tmp/l "$1"`, []string{"/tmp/l: EPERM", "/tmp/w: EPERM"}},
		{"symbolic link", `ln -s "$1" /tmp/s; guest read /tmp/s`, []string{"/tmp/s: EPERM"}},
		{"renamed over a clean file", `mv "$1" /data/clean.txt; guest read /data/clean.txt`, []string{"/data/clean.txt: EPERM"}},
		{"replaced", `rm "$1"; echo fine > "$1"; guest read "$1"`, []string{"/tmp/w: 5 bytes"}},
	}
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					r := e.Run(t, harness.Spec{Args: harness.WriteEICAR("/tmp/w", tt.script), Gate: agent.Gate("")})
					wantRead(t, r, tt.want...)
				})
			}
		})
	}
	agent.AwaitDenied(t, "/tmp/w")
}

// TestCleanFileTurnsBad: a layer's file that was read as clean and is then
// overwritten keeps its name, its inode number and its handle, not its verdict.
func TestCleanFileTurnsBad(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			c := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			wantRead(t, c.Exec(t, "guest", "read", harness.TopFile, harness.TopFile, harness.TopFile),
				harness.TopFile+": 18 bytes", harness.TopFile+": 18 bytes", harness.TopFile+": 18 bytes")
			r := c.Exec(t, harness.WriteEICAR(harness.TopFile, `guest read "$1"`)...)
			wantRead(t, r, harness.TopFile+": EPERM")
			wantRead(t, c.Exec(t, "guest", "read", harness.TopFile), harness.TopFile+": EPERM")
		})
	}
}
