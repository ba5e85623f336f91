package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// ran is what a program says that must not run.
const ran = "it ran"

// TestPod: what is clean runs as before, what is bad in a layer cannot be opened, and the
// record says where it was.
func TestPod(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, "records: {labels: [app]}\n"+suite.Hashes(t))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{Namespace: "pay-eu", Name: "shop-1", Labels: map[string]string{"app": "shop", "secret": "x"}})

	if r := pod.Run(t, Spec{Args: []string{"cat", harness.CleanFile}}); r.Code != 0 || r.Stdout != harness.CleanText {
		t.Errorf("a clean container: %s", r)
	}
	c := pod.Start(t, Spec{Name: "web", Args: reads()})
	wantGated(t, "the first act of a container", c.Wait(t))
	r := agent.AwaitRecord(t, "the denied open", denied(c))
	got := fmt.Sprintf("pod %s, container %s, namespace %s, tenant %s, labels %v", r.Container.Pod, r.Container.Name, r.Container.Namespace, r.Tenant, r.Container.Labels)
	if want := "pod shop-1, container web, namespace pay-eu, tenant default, labels map[app:shop]"; got != want {
		t.Errorf("the record names %s, want %s", got, want)
	}
	if r.Container.Image != TestImage || r.Container.ImageDigest != node.Images.Manifest {
		t.Errorf("the record names image %q with digest %q, want %s and %s", r.Container.Image, r.Container.ImageDigest, TestImage, node.Images.Manifest)
	}
	if want := node.Images.DiffIDs[1]; r.File.Layer != want || !r.File.Pristine {
		t.Errorf("the record names layer %q (pristine %t), want %s", r.File.Layer, r.File.Pristine, want)
	}
	wantNothingThrough(t, "all of it", observer)
}

// TestEntrypoint: a container whose program is malware, or is run by it, does not get to
// its first instruction.
func TestEntrypoint(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, suite.Hashes(t))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{})
	for _, args := range [][]string{
		{harness.ListedTool, "echo", ran}, {harness.ListedScript}, {harness.ViaListed},
	} {
		c, err := pod.Try(t, Spec{Args: args})
		if c == nil {
			t.Fatalf("%q is not even created: %v", args, err)
		}
		// The OCI runtime's exec is what fails, after it has told containerd that the
		// container has started, or before.
		if err == nil {
			if r := c.Wait(t); r.Code == 0 || r.Stdout != "" {
				t.Errorf("%q: %s", args, r)
			}
		}
		path := harness.ListedTool
		if args[0] == harness.ListedScript {
			path = args[0]
		}
		agent.AwaitRecord(t, "the denied exec of "+path, func(r harness.Record) bool {
			return r.Container.ID == c.ID() && r.Path == path && r.Decision == "deny" && r.Verdict == "malicious"
		})
	}
	wantNothingThrough(t, "all of it", observer)
}

// TestInitContainerAndExec: init containers are gated as others are, before those; so is
// whatever is started in a running container.
func TestInitContainerAndExec(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, suite.Hashes(t))
	pod := node.RunPod(t, PodSpec{})
	shared := Mount{Source: suite.HostDirectory(t, nil), Destination: "/vol"}

	// An init container that hands malware on through a volume, made from two halves.
	first, second := harness.EICARHalves()
	drop := []string{"sh", "-c", `printf %s%s "$1" "$2" >/vol/dropped && guest read /vol/dropped`, "sh", first, second}
	wantRead(t, "an init container", pod.Run(t, Spec{Name: "init", Args: drop, Mounts: []Mount{shared}}), "/vol/dropped: EPERM")
	// Not before: it cannot tell that the file was still empty when it was opened to be written.
	observer := node.Observe(t)
	main := pod.Start(t, Spec{Name: "main", Args: []string{"sleep", "1000"}, Mounts: []Mount{shared}})
	wantRead(t, "an exec session", main.Exec(t, "guest", "read", "/vol/dropped", harness.CleanFile),
		"/vol/dropped: EPERM", harness.CleanFile+": 13 bytes")
	if r, err := main.TryExec(t, harness.ListedTool, "echo", ran); err == nil && (r.Code == 0 || r.Stdout != "") {
		t.Errorf("an exec session of malware: %s", r)
	}
	agent.AwaitRecord(t, "the denied open in the volume", func(r harness.Record) bool {
		return r.Container.ID == main.ID() && r.Path == "/vol/dropped" && r.Decision == "deny"
	})
	wantNothingThrough(t, "all of it", observer)
}

// TestVolumes: volumes are gated, of the host's file system and in memory, and whether or
// not they may be written to.
func TestVolumes(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, suite.Hashes(t))
	observer := node.Observe(t)
	files := map[string][]byte{"bad": harness.EICAR(), "good": []byte("good\n")}
	memory := suite.Scratch(t)
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(memory, 0); err != nil {
			t.Errorf("the volume in memory, after its pod's end: %v", err)
		}
	})
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(memory, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod := node.RunPod(t, PodSpec{})
	c := pod.Start(t, Spec{Args: []string{"sleep", "1000"}, Mounts: []Mount{
		{Source: suite.HostDirectory(t, files), Destination: "/vol"},
		{Source: suite.HostDirectory(t, files), Destination: "/ro", ReadOnly: true},
		{Source: memory, Destination: "/ram"},
	}})
	for _, at := range []string{"/vol", "/ro", "/ram"} {
		wantRead(t, at, c.Exec(t, "guest", "read", at+"/bad", at+"/good"), at+"/bad: EPERM", at+"/good: 5 bytes")
		agent.AwaitDenied(t, at+"/bad")
	}
	wantNothingThrough(t, "the volumes", observer)
	// The memory that the pod's containers share, which containerd has mounted. Here the
	// observer could not tell that the file was still empty when it was opened to be written.
	first, second := harness.EICARHalves()
	wantRead(t, "/dev/shm", c.Exec(t, "sh", "-c", `printf %s%s "$1" "$2" >/dev/shm/bad; guest read /dev/shm/bad`, "sh", first, second), "/dev/shm/bad: EPERM")
	// The mount must not be busy when the test takes the volume away.
	pod.Remove(t)
}
