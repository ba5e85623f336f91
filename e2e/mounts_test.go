package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestOtherMounts: every mount of a container that holds files is gated, not only
// its root filesystem.
func TestOtherMounts(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for _, dir := range []string{"/vol", "/ram", "/dev/shm", "/dev"} {
				t.Run(filepath.Base(dir), func(t *testing.T) {
					spec := harness.Spec{
						Args:  harness.WriteEICAR(dir+"/w", `echo fine > "$1.ok"; guest read "$1" "$1.ok"`),
						Gate:  agent.Gate(""),
						Binds: []harness.Bind{{Source: suite.HostDirectory(t, nil), Destination: "/vol"}},
						Tmpfs: []string{"/ram"},
					}
					wantRead(t, e.Run(t, spec), dir+"/w: EPERM", dir+"/w.ok: 5 bytes")
				})
			}
		})
	}
	agent.AwaitDenied(t, "/vol/w")
	agent.AwaitDenied(t, "/dev/shm/w")
}

// TestVolumeOnHost: a file that came with a volume is refused inside the
// container, and the host's own opens of it stay the host's business.
func TestVolumeOnHost(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			dir := suite.HostDirectory(t, map[string][]byte{"bad": harness.EICAR(), "good": []byte("good\n")})
			c := e.Start(t, harness.Spec{
				Args: []string{"sleep", "1000"}, Gate: agent.Gate(""),
				Binds: []harness.Bind{{Source: dir, Destination: "/vol"}},
			})
			wantRead(t, c.Exec(t, "guest", "read", "/vol/bad", "/vol/good"), "/vol/bad: EPERM", "/vol/good: 5 bytes")
			got, err := os.ReadFile(filepath.Join(dir, "bad"))
			if err != nil || !bytes.Equal(got, harness.EICAR()) {
				t.Errorf("the host reads its own file: %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestExcludedVolume: a mount that the policy excludes by destination is left
// alone, another one is not.
func TestExcludedVolume(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t, "exclude: {mounts: [/db]}"))
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			files := map[string][]byte{"bad": harness.EICAR()}
			r := e.Run(t, harness.Spec{
				Args: []string{"guest", "read", "/db/bad", "/vol/bad"}, Gate: agent.Gate(""),
				Binds: []harness.Bind{
					{Source: suite.HostDirectory(t, files), Destination: "/db"},
					{Source: suite.HostDirectory(t, files), Destination: "/vol"},
				},
			})
			wantRead(t, r, "/db/bad: 68 bytes", "/vol/bad: EPERM")
		})
	}
}

// TestStatusNamesMarks: the agent says for every mount how it is watched and why.
func TestStatusNamesMarks(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t, "exclude: {mounts: [/db]}"))
	c := suite.Runc().Start(t, harness.Spec{
		Args: []string{"sleep", "1000"}, Gate: agent.Gate("shop"),
		Binds: []harness.Bind{
			{Source: suite.HostDirectory(t, nil), Destination: "/db"},
			{Source: suite.HostDirectory(t, nil), Destination: "/vol"},
		},
	})
	status := agent.Status(t)
	if len(status.Containers) != 1 || status.Containers[0].ID != c.ID() ||
		status.Containers[0].Namespace != "shop" || status.Containers[0].PID != c.PID(t) {
		t.Fatalf("want the one container %s: %+v", c.ID(), status.Containers)
	}
	want := map[string]string{"/": "superblock", "/dev/shm": "superblock", "/vol": "mount", "/db": "none"}
	for _, m := range status.Containers[0].Marks {
		if kind, ok := want[m.Destination]; ok && m.Kind == kind && m.Why != "" {
			delete(want, m.Destination)
		}
	}
	if len(want) != 0 {
		t.Errorf("marks lack %v: %+v", want, status.Containers[0].Marks)
	}
}
