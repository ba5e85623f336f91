package e2e

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestMountNamespaces: neither a new mount namespace nor a bind mount nor a user
// namespace takes a container's files out of the gate.
func TestMountNamespaces(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{
			"new mount namespace",
			[]string{"unshare", "-m", "guest", "read", harness.BadFile, harness.CleanFile},
			[]string{harness.BadFile + ": EPERM", harness.CleanFile + ": 13 bytes"},
		},
		{
			"bind mount",
			[]string{"unshare", "-m", "sh", "-c", "mount -o bind /data /mnt && guest read /mnt/bad.txt /mnt/clean.txt"},
			[]string{"/mnt/bad.txt: EPERM", "/mnt/clean.txt: 13 bytes"},
		},
		{
			"bind mount of the root",
			[]string{"unshare", "-m", "sh", "-c", "mount -o bind / /mnt && guest read /mnt/data/bad.txt /mnt/data/clean.txt"},
			[]string{"/mnt/data/bad.txt: EPERM", "/mnt/data/clean.txt: 13 bytes"},
		},
		{
			"user and mount namespace",
			[]string{"unshare", "-U", "-r", "-m", "sh", "-c", "mount -o bind /data /mnt && guest read /mnt/bad.txt /mnt/clean.txt"},
			[]string{"/mnt/bad.txt: EPERM", "/mnt/clean.txt: 13 bytes"},
		},
	}
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					wantRead(t, e.Run(t, harness.Spec{Args: tt.args, Gate: agent.Gate(""), Privileged: true}), tt.want...)
				})
			}
		})
	}
}
