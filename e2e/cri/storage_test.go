package cri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/assay-project/assay/e2e/fault"
	"github.com/assay-project/assay/e2e/harness"
)

// TestRemovedDuringScan: a container that is stopped and removed while its file is being
// scanned leaves no mount, no snapshot and no image that could not be removed at once.
func TestRemovedDuringScan(t *testing.T) {
	clamd := fault.StartClamd(t, suite)
	node, agent := StartGated(t, suite, Options{}, harness.ClamdScanner(clamd.Socket)+"tenants:\n"+
		harness.Tenant("default", "{}", "clamav", `scanAhead: "off"`, "deadline: 60s"))
	before := node.Snapshots(t)
	const name = "localhost/assay/doomed"
	node.Import(t, name, suite.Layout(t, "doomed", map[string]string{"/data/only-here": "only here\n"}))
	pod := node.RunPod(t, PodSpec{})
	c := pod.Start(t, Spec{Image: name + ":test", Args: []string{"sleep", "1000"}})
	waiting := make(chan struct{})
	resume := sync.OnceFunc(func() { close(waiting) })
	t.Cleanup(resume)
	clamd.Do(fault.Misbehaviour{Before: func() { <-waiting }})
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = c.TryExec(t, "cat", "/data/only-here") // what is said of a container that ends is containerd's
	}()
	harness.Eventually(t, "an open waits for the scanner", func() error {
		if agent.Status(t).Waiting() == 0 {
			return errors.New("nobody waits")
		}
		return nil
	})

	c.Kill(t)
	c.Remove(t) // says if a mount is still there
	pod.Remove(t)
	<-read
	node.RemoveImage(t, name+":test")
	harness.Eventually(t, "every snapshot of the image and its container is removed", func() error {
		if now := node.Snapshots(t); !slices.Equal(now, before) {
			return fmt.Errorf("there are\n%q, before the image\n%q", now, before)
		}
		return nil
	})
	if n := agent.Status(t).Waiting(); n != 0 {
		t.Errorf("%d events of a container that is gone have no answer", n)
	}
	resume()
	agent.AwaitIdle(t)
}

// TestRemoved: the agent holds nothing of containers that are removed, nor of their pods.
func TestRemoved(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, suite.Hashes(t))
	once := func() {
		pod := node.RunPod(t, PodSpec{})
		c := pod.Start(t, idle())
		for range 3 { // often enough for a kernel mark, with whatever it takes
			wantGated(t, "a container", c.Exec(t, reads()...))
		}
		c.Kill(t)
		c.Remove(t)
		pod.Remove(t)
		agent.AwaitIdle(t)
	}
	once() // makes the agent open what it keeps for good
	before := agent.Descriptors(t)
	for range 5 {
		once()
	}
	harness.Eventually(t, "the agent closes what it opened for the containers", func() error {
		if now := agent.Descriptors(t); len(now) > len(before) {
			return fmt.Errorf("%d descriptors, %d before:\n%s", len(now), len(before), strings.Join(now, "\n"))
		}
		return nil
	})
}

// TestSecondContainer: what was scanned for one container is not scanned for the next one
// of its image, in another pod, and after a restart of everything.
func TestSecondContainer(t *testing.T) {
	list := suite.AnyHash(t) // every file has to be read
	node, agent := StartGated(t, suite, Options{}, harness.HashScanner(list)+"tenants:\n"+harness.Tenant("default", "{}", "hashes", `scanAhead: "off"`))
	read := Spec{Args: []string{"guest", "read", harness.BadFile, harness.CleanFile, harness.TopFile, "/data/many/00"}}
	want := []string{harness.BadFile + ": EPERM", harness.CleanFile + ": 13 bytes", harness.TopFile + ": 18 bytes", "/data/many/00: 7 bytes"}
	run := func(what string) uint64 {
		t.Helper()
		before := agent.Status(t).Scans("default")
		pod := node.RunPod(t, PodSpec{})
		wantRead(t, what, pod.Run(t, read), want...)
		pod.Remove(t)
		agent.AwaitIdle(t)
		return agent.Status(t).Scans("default") - before
	}
	if n := run("the first container"); n == 0 {
		t.Error("the first container made no scan")
	}
	if n := run("the second container"); n != 0 {
		t.Errorf("the second container made %d scans, want none", n)
	}
	node.Restart(t, 15)
	node.AwaitPlugin(t, 2)
	if n := run("after containerd's restart"); n != 0 {
		t.Errorf("a container made %d scans after containerd's restart, want none", n)
	}
	agent.AwaitStored(t, uint64(agent.Verdicts(t).Cache.Files)) //nolint:gosec // a handful
	agent.Stop(t)
	agent.Restart(t)
	node.AwaitPlugin(t, 3)
	if n := run("after the agent's restart"); n != 0 {
		t.Errorf("a container made %d scans after the agent's restart, want none", n)
	}
	layers := agent.Verdicts(t).Layers()
	for i, digest := range node.Images.DiffIDs {
		if layers[digest] == 0 {
			t.Errorf("no verdict is kept for layer %d, %s; there are %v", i, digest, layers)
		}
	}
}

// TestNativeSnapshotter: a root file system that is no overlay cannot be guarded. Such a
// container does not start, and everybody says why; unless its tenant lets it.
func TestNativeSnapshotter(t *testing.T) {
	config := harness.HashScanner(suite.Image(t).Hashes) + "tenants:\n" +
		harness.Tenant("open", "{namespaces: [open]}", "hashes", "onUnguarded: allow") +
		harness.Tenant("default", "{}", "hashes")
	node, agent := StartGated(t, suite, Options{Snapshotter: "native"}, config)
	pod := node.RunPod(t, PodSpec{})
	c, err := pod.Try(t, Spec{Args: reads()})
	if err == nil {
		t.Fatalf("it starts: %s", c.Wait(t))
	}
	if !strings.Contains(err.Error(), "overlay") {
		t.Errorf("the kubelet is told %q, which does not say that it takes an overlay", err)
	}
	r := agent.AwaitRecord(t, "the start that was refused", func(r harness.Record) bool {
		return r.Op == "start" && r.Container.ID == c.ID()
	})
	if r.Decision != "deny" || r.Reason != "unguarded" || r.Tenant != "default" || !strings.Contains(r.Detail, "overlay") {
		t.Errorf("the record is %+v", r)
	}

	c, err = node.RunPod(t, PodSpec{Namespace: "open"}).Try(t, Spec{Args: reads()})
	if err != nil {
		t.Fatalf("a tenant with onUnguarded: allow: %v", err)
	}
	wantAllRead(t, "a tenant with onUnguarded: allow", c.Wait(t))
	if r := agent.AwaitRecord(t, "the unguarded start", func(r harness.Record) bool {
		return r.Op == "start" && r.Container.ID == c.ID()
	}); r.Decision != "allow" || r.Reason != "unguarded" || r.Tenant != "open" {
		t.Errorf("the record is %+v", r)
	}
	for _, tenant := range []string{"default", "open"} {
		if n := agent.Status(t).Reason(tenant, "unguarded"); n != 1 {
			t.Errorf("tenant %s: %d starts are counted as unguarded, want 1", tenant, n)
		}
	}
	says := agent.CLI(t, "doctor", "--config", agent.Config(), "--containerd-config", node.config)
	if says.Code != 1 || !strings.Contains(says.Stdout, "snapshotter native") || !strings.Contains(says.Stdout, "cannot be guarded") {
		t.Errorf("doctor does not say that containers of the native snapshotter cannot be guarded: %s", says)
	}
}

// TestErofsSnapshotter: layers that are file systems of their own, with an overlay on top,
// are guarded like any.
func TestErofsSnapshotter(t *testing.T) {
	node, agent := StartGated(t, suite, Options{Snapshotter: "erofs"}, suite.Hashes(t))
	observer := node.Observe(t)
	pod := node.RunPod(t, PodSpec{})
	c := pod.Start(t, idle())
	if mounts := command(t, "findmnt", "--list", "--noheadings", "--types", "erofs", "--output", "TARGET"); !strings.Contains(mounts, node.dir) {
		t.Fatalf("no layer is an erofs: %s", mounts)
	}
	wantGuarded(t, "a container with erofs layers", agent, c)
	agent.AwaitRecord(t, "the denied open", denied(c))
	wantNothingThrough(t, "all of it", observer)
}
