package cri

import (
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestNode: the node does what these tests need of it, without any agent: pods,
// containers, exec, logs, volumes, and containers that outlive containerd.
func TestNode(t *testing.T) {
	node := Start(t, suite, Options{})
	pod := node.RunPod(t, PodSpec{Namespace: "pay", Labels: map[string]string{"app": "shop"}})
	dir := suite.HostDirectory(t, map[string][]byte{"hello": []byte("from the host\n")})

	if r := pod.Run(t, Spec{Args: []string{"cat", harness.CleanFile}}); r.Code != 0 || r.Stdout != harness.CleanText {
		t.Errorf("a container that ends: %s", r)
	}
	c := pod.Start(t, Spec{Args: []string{"sleep", "1000"}, Mounts: []Mount{{Source: dir, Destination: "/vol", ReadOnly: true}}})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if r := c.Exec(t, "cat", "/vol/hello"); r.Code != 0 || r.Stdout != "from the host\n" {
			t.Errorf("exec: %s", r)
		}
		if r := c.Exec(t, "touch", "/vol/new"); r.Code != 1 {
			t.Errorf("a read-only volume is written to: %s", r)
		}
		pid := c.PID(t)
		node.Restart(t, sig)
		if now := c.PID(t); now != pid {
			t.Errorf("pid is %d after %v, %d before", now, sig, pid)
		}
	}
	if _, err := pod.Try(t, Spec{Args: []string{"/no/such/program"}}); err == nil {
		t.Error("a program that is not there starts")
	}
	c.Kill(t)
	c.Remove(t)
	pod.Remove(t)
}
