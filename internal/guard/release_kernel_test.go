package guard

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestKernelExitDuringScan: when a container's first process ends, whoever waits
// is answered, nothing is left behind, and its storage can be unmounted at once.
func TestKernelExitDuringScan(t *testing.T) {
	for _, action := range []tenant.Action{tenant.Allow, tenant.Deny} {
		t.Run(string(action), func(t *testing.T) {
			started := make(chan struct{}, 1)
			r := newRig(t, scannertest.NewFake("1", scannertest.Hang(started)), config(func(p *tenant.Tenant) { p.OnError, p.Deadline = action, time.Hour }))
			c := kerneltest.NewContainer(t, samples(), "")
			r.announced(t, c)
			o := open(t, c.Path("good"))
			receive(t, "the scan", started)
			c.Kill()
			if action == tenant.Allow {
				o.wantContent(t, "content")
			} else {
				o.wantDenied(t)
			}
			if got := r.next(t); got.Reason != audit.ReasonStopping || got.Decision != string(action) {
				t.Errorf("the record is %+v", got)
			}
			eventually(t, "the container is released", func() bool { return len(r.Containers()) == 0 && r.held.n.Load() == 0 })
			if left := descriptorsBelow(t, c.Merged); len(left) != 0 {
				t.Errorf("descriptors are left: %q", left)
			}
			if err := unix.Unmount(c.Merged, 0); err != nil {
				t.Errorf("its overlay cannot be unmounted: %v", err)
			}
			r.noRecord(t)
		})
	}
}

// TestKernelReleaseWithStuckScan: a scanner that does not come back holds a
// descriptor, but not the next opener of a container that has ended.
func TestKernelReleaseWithStuckScan(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = time.Hour }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	o := open(t, c.Path("good"))
	s.began(t)
	c.Kill()
	o.wantDenied(t)
	eventually(t, "the container is released", func() bool { return len(r.Containers()) == 0 })
	// What the runtime does now must not wait for a reader that is not there.
	open(t, c.Path("good")).wantContent(t, "content")
	s.release()
}

// TestKernelClose: the agent stops while containers run. Waiters are answered by
// the policy, and openers afterwards do not wait, even if a scan never ends.
func TestKernelClose(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = time.Hour }), func(o *Options) { o.Workers = 1 })
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	openers := []*opener{open(t, c.Path("good"))}
	s.began(t)
	for range 4 {
		openers = append(openers, open(t, c.Path("good")))
	}
	eventually(t, "all openers are queued", func() bool { return r.held.n.Load() == 5 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n := r.Close(ctx); n != 1 {
		t.Errorf("%d containers were guarded, want 1", n)
	}
	for _, o := range openers {
		o.wantDenied(t)
	}
	for range openers {
		if got := r.next(t); got.Reason != audit.ReasonStopping || got.Decision != "deny" {
			t.Errorf("the record is %+v", got)
		}
	}
	open(t, c.Path("good")).wantContent(t, "content")
	s.release()
	eventually(t, "the last descriptor is released", func() bool { return r.held.n.Load() == 0 })
	if _, err := r.announce(t, announcement(c)); statusOf(err) != 503 {
		t.Errorf("an announcement after Close: %v", err)
	}
}

// TestKernelMarksEndWithTheContainer: released, a container's files are nobody's
// business any more.
func TestKernelMarksEndWithTheContainer(t *testing.T) {
	scans := newContains()
	r := newRig(t, scans, config())
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	c.Kill()
	eventually(t, "the container is released", func() bool { return len(r.Containers()) == 0 })
	open(t, c.Path("bad")).wantContent(t, needle)
	if n := scans.Calls(); n != 0 {
		t.Errorf("%d scans for a released container", n)
	}
	if entries, err := os.ReadDir("/proc/self/fd"); err != nil {
		t.Error(err)
	} else {
		for _, e := range entries {
			if name, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); name == "anon_inode:[pidfd]" {
				t.Error("a pidfd is left")
			}
		}
	}
}

// TestKernelVolume guards what is not the rootfs: a bind of a host directory, a
// tmpfs, a tmpfs below it, a single file, and not what is excluded.
func TestKernelVolume(t *testing.T) {
	host := t.TempDir() // on a filesystem that the host has mounted
	for _, name := range []string{"bad", "single"} {
		if err := os.WriteFile(filepath.Join(host, name), []byte(needle), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.ExcludeMounts = []string{"/data"} }))
	c := kerneltest.NewContainer(t, map[string]string{"vol/x": "", "tmp/x": "", "data/x": "", "file": "", "proc/x": ""}, `
		mount --bind `+host+` vol
		mount -t tmpfs none tmp
		mkdir tmp/below && mount -t tmpfs none tmp/below
		mount -t tmpfs none data
		mount -t proc none proc
		mount --bind `+host+`/single file
		for dir in tmp tmp/below data; do echo `+needle+` > $dir/bad; done`)
	g := r.announced(t, c)
	want := map[string]MarkKind{
		"/": MarkSuperblock, "/vol": MarkMount, "/tmp": MarkSuperblock, "/tmp/below": MarkSuperblock,
		"/data": MarkNone, "/proc": MarkNone, "/file": MarkMount,
	}
	got := map[string]MarkKind{}
	for _, m := range r.Containers()[0].Mounts {
		if got[m.Destination] = m.Kind; m.Why == "" {
			t.Errorf("no reason for the mark on %s", m.Destination)
		}
	}
	for destination, kind := range want {
		if got[destination] != kind {
			t.Errorf("%s is marked %q, want %q", destination, got[destination], kind)
		}
	}
	if len(got) != len(want) || g.Marks != 5 {
		t.Errorf("marked are %v, %d of them by the reply", got, g.Marks)
	}
	for _, file := range []string{"vol/bad", "tmp/bad", "tmp/below/bad", "file"} {
		begin(t, c.Command(t, "cat", c.Path(file))).wantDenied(t)
		if rec := r.next(t); rec.Reason != audit.ReasonMalicious {
			t.Errorf("the record of %s is %+v", file, rec)
		}
	}
	begin(t, c.Command(t, "cat", c.Path("data/bad"))).wantContent(t, needle+"\n")
	// The host's own opens are nobody's business.
	open(t, filepath.Join(host, "bad")).wantContent(t, needle)
	r.noRecord(t)
}

// TestKernelHiddenMount: of two mounts at one place the lower cannot be reached, by
// the container neither, and the upper is guarded.
func TestKernelHiddenMount(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, map[string]string{"vol/x": ""}, `
		for i in 1 2; do mount -t tmpfs none vol; echo `+needle+` > vol/bad; done`)
	if g := r.announced(t, c); g.Marks != 2 {
		t.Errorf("%d marks, want 2", g.Marks)
	}
	kinds := map[MarkKind]string{}
	for _, m := range r.Containers()[0].Mounts {
		if m.Destination == "/vol" {
			kinds[m.Kind] = m.Why
		}
	}
	if len(kinds) != 2 || kinds[MarkSuperblock] == "" || kinds[MarkNone] != errHidden.Error() {
		t.Errorf("the marks are %+v", kinds)
	}
	begin(t, c.Command(t, "cat", c.Path("vol/bad"))).wantDenied(t)
}

// statusOf is the HTTP status of an announcement's error, or 200.
func statusOf(err error) int {
	if err == nil {
		return 200
	}
	var refused interface{ HTTPStatus() int }
	if errors.As(err, &refused) {
		return refused.HTTPStatus()
	}
	return 0
}
