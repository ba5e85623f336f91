package cri

import (
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestObserver: without an agent, the observer sees each way in which a container gets at
// a bad file: from its first instruction on, in its layers, volumes and memory, by read,
// exec, and of a script's interpreter. If it did not, its silence elsewhere would mean nothing.
func TestObserver(t *testing.T) {
	node := Start(t, suite, Options{})
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{})
	dir := suite.HostDirectory(t, map[string][]byte{"bad": harness.EICAR()})
	wantThrough := func(what, path string, exec bool) {
		t.Helper()
		seen := func(o Opened) bool { return strings.HasSuffix(o.Path, path) && o.Exec == exec }
		if got := observer.Through(t); !slices.ContainsFunc(got, seen) {
			t.Errorf("%s: the observer has not seen %s (exec %t), but %+v", what, path, exec, got)
		}
	}

	if r := pod.Run(t, Spec{Args: []string{"cat", harness.CleanFile}}); r.Code != 0 || len(observer.Through(t)) != 0 {
		t.Fatalf("a clean file is bad: %+v: %s", observer.Through(t), r)
	}
	pod.Run(t, Spec{Args: []string{harness.ListedTool, "true"}})
	wantThrough("an entrypoint", harness.ListedTool, true)
	c := pod.Start(t, Spec{Args: []string{"sleep", "1000"}, Mounts: []Mount{{Source: dir, Destination: "/vol"}}})
	for _, reads := range []struct {
		what string
		args []string
		path string
		exec bool
	}{
		{"a read", []string{"cat", harness.BadFile}, harness.BadFile, false},
		{"a script", []string{harness.ViaListed}, harness.ListedTool, true},
		{"a volume", []string{"cat", "/vol/bad"}, "/vol/bad", false},
		{"a copy in memory", []string{"sh", "-c", "cat /vol/bad >/dev/shm/bad; cat /dev/shm/bad"}, "/dev/shm/bad", false},
		{"a copy", []string{"sh", "-c", "cp /vol/bad /tmp/bad; cat /tmp/bad"}, "/tmp/bad", false},
	} {
		c.Exec(t, reads.args...)
		wantThrough(reads.what, reads.path, reads.exec)
	}
}
