package guard

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// withMemory gives a rig's guard a memory, which ends after the guard.
func withMemory(t *testing.T, changes ...func(*Memory)) func(*Options) {
	t.Helper()
	host, err := layer.OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	clock, err := layer.NewClock()
	if err != nil {
		t.Fatal(err)
	}
	leases, err := lease.NewHolder()
	if err != nil {
		t.Fatal(err)
	}
	m := &Memory{Cache: verdict.New(verdict.Options{}), Leases: leases, Host: host, Clock: clock, MaxMarks: 1000}
	for _, change := range changes {
		change(m)
	}
	t.Cleanup(func() {
		if n := leases.Len(); n != 0 {
			t.Errorf("%d leases are held at the end", n)
		}
		leases.Close()
		clock.Close()
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(o *Options) { o.Memory = m }
}

// memoryRig is a guard with a memory and a scanner that counts its scans.
func memoryRig(t *testing.T, marks tenant.KernelMarks, changes ...func(*Memory)) (*rig, *scannertest.Fake) {
	t.Helper()
	fake := newContains()
	with := withMemory(t, changes...) // ends last
	return newRig(t, fake, config(func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec = marks, tenant.AheadOff, false
	}), with), fake
}

// sharing starts n containers on one layer.
func sharing(t *testing.T, n int, files map[string]string) []*kerneltest.Container {
	t.Helper()
	first := kerneltest.NewOverlay(t, files)
	settle(t, first.Lower)
	all := []*kerneltest.Container{kerneltest.StartContainer(t, first, "")}
	for range n - 1 {
		all = append(all, kerneltest.StartContainer(t, kerneltest.NewOverlayOn(t, first.Lower), ""))
	}
	return all
}

// settle waits until the files of a directory are old enough for a scan ahead.
func settle(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := unix.Open(filepath.Join(dir, e.Name()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the file is old enough", func() bool { return isSettled(fd) })
		_ = unix.Close(fd)
	}
}

// TestKernelScannedOncePerLayer: a file of a layer is scanned for the first container
// that opens it, and for no other.
func TestKernelScannedOncePerLayer(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkOff)
	containers := sharing(t, 3, samples())
	for i, c := range containers {
		r.announced(t, c)
		for range 3 {
			open(t, c.Path("good")).wantContent(t, "content")
			open(t, c.Path("bad")).wantDenied(t)
		}
		if n := fake.Calls(); n != 2 {
			t.Errorf("container %d: %d scans so far, want one of each file", i, n)
		}
	}
	first := r.next(t)
	if first.Source != sourceScan || !first.File.Pristine || first.File.Identity == "" {
		t.Errorf("the first record is %+v", first)
	}
	for range 9 { // denials are recorded, each one
		if rec := r.next(t); rec.Decision != "deny" || rec.Verdict != "malicious" {
			t.Errorf("the record is %+v", rec)
		}
	}
	r.noRecord(t)
	if state := r.Tenants()[0]; state.Scans != 2 || state.Answers.Reasons[audit.ReasonClean.String()] != 9 {
		t.Errorf("the tenant's counters are %+v", state)
	}
}

// TestKernelKeptAtTheEnd: what was scanned for a container that ended under the scan
// is known to the next one.
func TestKernelKeptAtTheEnd(t *testing.T) {
	var r *rig
	contains := scannertest.Contains(needle, "Test.Malware")
	fake := scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		for _, c := range r.guarded() {
			if c.info.Name == "ends" {
				r.release(c, "the test says so")
			}
		}
		return contains(context.WithoutCancel(ctx), f, gen)
	})
	with := withMemory(t)
	r = newRig(t, fake, config(func(p *tenant.Tenant) { p.ScanAhead, p.OnExec = tenant.AheadOff, false }), with)
	all := sharing(t, 2, samples())
	r.announced(t, all[0], func(a *announce.Container) { a.Name = "ends" })
	open(t, all[0].Path("good")).result(t) // by the verdict or, if that is quicker, by the end of the container
	eventually(t, "the scan ends", func() bool { return r.held.n.Load() == 0 })
	r.announced(t, all[1])
	open(t, all[1].Path("good")).wantContent(t, "content")
	if n := fake.Calls(); n != 1 {
		t.Errorf("%d scans of one file of a layer", n)
	}
}

// TestKernelEveryLayer: files of all layers of a tall stack are known to the next
// container on it, wherever it looks for them first.
func TestKernelEveryLayer(t *testing.T) {
	const layers = 127
	r, fake := memoryRig(t, tenant.MarkOff)
	stack := kerneltest.NewStack(t, layers)
	for i := range 2 {
		c := kerneltest.StartContainer(t, stack.Mount(t), "")
		r.announced(t, c)
		var all []string
		for depth := range layers {
			all = append(all, c.Path(fmt.Sprint("file", depth)))
		}
		open(t, append(all, all...)...).result(t)
		if n := fake.Calls(); n != layers {
			t.Errorf("after container %d: %d scans, want %d", i, n, layers)
		}
	}
}

// TestKernelMarked: a clean file of a layer that is opened again and again is opened
// without an event; a writer is let in, and what it wrote is scanned.
func TestKernelMarked(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkLayers)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	events := func() uint64 { return r.readers.Stats().Events }
	marked := func() bool { return r.marks.placed.Load() == 1 }
	eventually(t, "the file is marked", func() bool {
		open(t, c.Path("good")).wantContent(t, "content")
		return marked()
	})
	before := events()
	for range 10 {
		open(t, c.Path("good")).wantContent(t, "content")
	}
	if n := events() - before; n != 0 {
		t.Errorf("%d events for opens of a marked file", n)
	}
	scans := fake.Calls()
	if out, err := c.Shell(t, `printf %s `+needle+` >good`); err != nil {
		t.Fatalf("a writer was not let in: %v: %s", err, out)
	}
	open(t, c.Path("good")).wantDenied(t)
	if n := fake.Calls(); n != scans+1 {
		t.Errorf("%d scans of the changed file, want 1", n-scans)
	}
	var dirty int
	for r.sub.Behind() > 0 {
		if rec := r.next(t); rec.Op == audit.OpDirty {
			dirty++
			if rec.Reason != audit.ReasonDirty || rec.Decision != "" || !rec.File.Pristine || rec.Path == "" {
				t.Errorf("the record is %+v", rec)
			}
		}
	}
	if dirty != 1 {
		t.Errorf("the file became dirty %d times", dirty)
	}
}

// TestKernelKnownAllocatesNothing holds the promise of the fast path for what is
// answered from memory.
func TestKernelKnownAllocatesNothing(t *testing.T) {
	r, _ := memoryRig(t, tenant.MarkOff)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	open(t, c.Path("good")).wantContent(t, "content")
	k := r.container(t, announcement(c).ID)
	ran := make(chan float64, 1)
	var once bool
	watch(t, r, c.Overlay, func(ev *fanotify.Event) {
		if !once {
			once = true
			p := k.pool.Load().policy.Load()
			ran <- testing.AllocsPerRun(1000, func() {
				if !k.answerKnown(k.pool.Load(), p, ev) {
					t.Error("not answered from memory")
				}
			})
		}
		ev.Answer(fanotify.Allow)
	})
	open(t, c.Path("good")).wantContent(t, "content")
	// Under the race detector a sync.Pool forgets a quarter of what it is given: then
	// a view is made anew. `make test-kernel` runs this test without it, too.
	if n := receive(t, "the measurement", ran); n > forgotten {
		t.Errorf("%v allocations for an event", n)
	}
}

// TestKernelMarksEnd: marks go with their container, and nothing of it stays open.
func TestKernelMarksEnd(t *testing.T) {
	r, _ := memoryRig(t, tenant.MarkLayers)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	eventually(t, "the file is marked", func() bool {
		open(t, c.Path("good")).wantContent(t, "content")
		return r.marks.placed.Load() == 1
	})
	c.Kill()
	eventually(t, "the container is released", func() bool { return len(r.Containers()) == 0 })
	if n := r.memory.Leases.Len(); n != 0 {
		t.Errorf("%d leases outlive the container", n)
	}
	if open := descriptorsBelow(t, c.Merged); len(open) != 0 {
		t.Errorf("still open: %v", open)
	}
	if err := unix.Unmount(c.Merged, 0); err != nil {
		t.Errorf("the root filesystem is busy: %v", err)
	}
}

// TestKernelGenerationFlushesMarks: a scanner that knows more is asked about marked
// files, too.
func TestKernelGenerationFlushesMarks(t *testing.T) {
	var wiser atomic.Bool
	contains := scannertest.Contains("content", "Test.New")
	fake := scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		if wiser.Load() {
			return contains(ctx, f, gen)
		}
		return scanner.CleanVerdict(gen)
	})
	with := withMemory(t)
	r := newRig(t, fake, config(func(p *tenant.Tenant) { p.ScanAhead, p.OnExec = tenant.AheadOff, false }), with)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	eventually(t, "the file is marked", func() bool {
		open(t, c.Path("good")).wantContent(t, "content")
		return r.marks.placed.Load() == 1
	})
	wiser.Store(true)
	fake.SetGeneration("2")
	eventually(t, "the mark is flushed", func() bool { return r.marks.flushed.Load() == 1 })
	open(t, c.Path("good")).wantDenied(t)
}
