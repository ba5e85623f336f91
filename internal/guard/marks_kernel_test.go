package guard

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// marksRig is a guard whose tenants may have that many marks in all.
func marksRig(t *testing.T, most int, cfg *tenant.Config) *rig {
	t.Helper()
	with := withMemory(t) // ends last
	return newRig(t, newContains(), cfg, with, func(o *Options) { o.Memory.MaxMarks = most })
}

// layersOnly is a policy that marks files of layers.
func layersOnly(p *tenant.Tenant) {
	p.KernelMarks, p.ScanAhead, p.OnExec = tenant.MarkLayers, tenant.AheadOff, false
}

// wanted opens files until each was wished for, and the wishes were granted or not.
func (r *rig) wanted(t *testing.T, paths ...string) {
	t.Helper()
	decided := func() (n uint64) {
		n = r.marks.placed.Load()
		for s := range numSkips {
			n += r.marks.skipped[s].Load()
		}
		return n
	}
	before := decided()
	eventually(t, "every file is marked or not", func() bool {
		if _, ok := open(t, paths...).result(t); !ok {
			t.Fatal("a clean file was refused")
		}
		return decided()-before >= uint64(len(paths))
	})
}

func numbered(c *kerneltest.Container, n int) (paths []string) {
	for i := range n {
		paths = append(paths, c.Path(fmt.Sprint(i)))
	}
	return paths
}

func numberedFiles(n int) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprint(i)] = fmt.Sprint("content ", i)
	}
	return files
}

// TestKernelMarksBound: no more files are marked than may be, young marks stay, and
// all files stay readable.
func TestKernelMarksBound(t *testing.T) {
	const files, most = 20, 5
	r := marksRig(t, most, config(layersOnly))
	c := sharing(t, 1, numberedFiles(files))[0]
	r.announced(t, c)
	r.wanted(t, numbered(c, files)...)
	st := r.Marks()
	if st.Now != most || st.Placed != most || st.Evicted != 0 || st.Skipped[skipBudget.String()] == 0 {
		t.Errorf("%+v, want %d marks and no other in their place so soon", st, most)
	}
	if n := r.memory.Leases.Len(); n != most {
		t.Errorf("%d leases for %d marks", n, most)
	}
}

// TestKernelMarksShare: a tenant that came first gives way to one below its share.
func TestKernelMarksShare(t *testing.T) {
	const most = 8
	r := marksRig(t, most, withTenant(config(layersOnly), "late", "late", layersOnly))
	all := sharing(t, 2, numberedFiles(most))
	r.announced(t, all[0])
	r.wanted(t, numbered(all[0], most)...)
	if st := r.Marks(); st.Now != most {
		t.Fatalf("%+v, want all marks taken", st)
	}
	r.announced(t, all[1], inNamespace("late"))
	r.wanted(t, numbered(all[1], most)...)
	for _, s := range r.Tenants() {
		if s.Marks < most/3 {
			t.Errorf("tenant %s has %d of %d marks", s.Name, s.Marks, most)
		}
	}
	if st := r.Marks(); st.Now != most || st.Evicted == 0 {
		t.Errorf("%+v", st)
	}
	for _, c := range all {
		open(t, numbered(c, most)...).result(t)
	}
}

// TestKernelReadOnlyMarks: with kernelMarks: readonly only files on a mount that
// cannot be written are marked.
func TestKernelReadOnlyMarks(t *testing.T) {
	readOnly := func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec = tenant.MarkReadonly, tenant.AheadOff, false
	}
	for name, tt := range map[string]struct {
		setup string
		marks int
	}{
		"writable":  {"", 0},
		"read-only": {"mount -o remount,bind,ro .", 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := marksRig(t, 100, config(readOnly))
			c := kerneltest.StartContainer(t, kerneltest.NewOverlay(t, samples()), tt.setup)
			r.announced(t, c)
			eventually(t, "the file is marked or not", func() bool {
				if out, err := c.Shell(t, "cat good"); err != nil || out != "content" {
					t.Fatalf("%q, %v", out, err)
				}
				st := r.Marks()
				return st.Placed+st.Skipped[skipWritable.String()] > 0
			})
			if st := r.Marks(); st.Now != tt.marks {
				t.Errorf("%+v, want %d marks", st, tt.marks)
			}
		})
	}
}

// TestKernelFrozen: a root filesystem without an upper directory needs no leases, and
// its marks go as others do.
func TestKernelFrozen(t *testing.T) {
	r := marksRig(t, 100, config(layersOnly))
	stack := kerneltest.NewStack(t, 2)
	o := kerneltest.Overlay{Lower: stack[0], Merged: t.TempDir()}
	kerneltest.Mount(t, "overlay", o.Merged, "overlay", 0, "lowerdir="+stack[0]+":"+stack[1])
	c := kerneltest.StartContainer(t, o, "")
	r.announced(t, c)
	paths := []string{c.Path("file0"), c.Path("file1")}
	r.wanted(t, paths...)
	if st := r.Marks(); st.Now != 2 || r.memory.Leases.Len() != 0 {
		t.Errorf("%+v with %d leases, want two marks and none", st, r.memory.Leases.Len())
	}
	events := r.readers.Stats().Events
	open(t, paths...).wantContent(t, "layer 0layer 1")
	if n := r.readers.Stats().Events - events; n != 0 {
		t.Errorf("%d events for marked files", n)
	}
	r.marks.flush(r.container(t, announcement(c).ID).pool.Load())
	open(t, paths...).wantContent(t, "layer 0layer 1")
	if n := r.readers.Stats().Events - events; n != 2 || r.Marks().Now != 0 {
		t.Errorf("%d events after the flush, want 2; %+v", n, r.Marks())
	}
}

// TestKernelSweep: a marked file that was removed is let go of.
func TestKernelSweep(t *testing.T) {
	r := marksRig(t, 100, config(func(p *tenant.Tenant) { p.KernelMarks, p.ScanAhead, p.OnExec = tenant.MarkAll, tenant.AheadOff, false }))
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	if out, err := c.Shell(t, "printf mine >own"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "the file is marked", func() bool {
		open(t, c.Path("own")).wantContent(t, "mine")
		return r.Marks().Now == 1
	})
	r.marks.sweep()
	if st := r.Marks(); st.Now != 1 {
		t.Errorf("%+v: a file with a name was let go of", st)
	}
	if err := unix.Unlink(c.Path("own")); err != nil {
		t.Fatal(err)
	}
	r.marks.sweep()
	if st := r.Marks(); st.Now != 0 || r.memory.Leases.Len() != 0 {
		t.Errorf("%+v, %d leases", st, r.memory.Leases.Len())
	}
}

// TestKernelSuspectClock: once somebody has set the clock, identities alone answer
// nothing: a layer's file is proven anew, the container's own is scanned.
func TestKernelSuspectClock(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkLayers)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	open(t, c.Path("good")).wantContent(t, "content")
	now := unix.NsecToTimeval(time.Now().UnixNano())
	if err := unix.Settimeofday(&now); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		open(t, c.Path("good")).wantContent(t, "content")
	}
	if n := fake.Calls(); n != 1 {
		t.Errorf("%d scans: the layer's file is proven anew, and known", n)
	}
	// What an identity alone answers is not recorded; what a worker answers is.
	if rec := r.next(t); rec.Source != sourceScan {
		t.Errorf("the first record is %+v", rec)
	}
	for range 3 {
		if rec := r.next(t); rec.Source != sourceCache || !rec.File.Pristine {
			t.Errorf("answered from an identity alone? The record is %+v", rec)
		}
	}
	r.noRecord(t)
	if out, err := c.Shell(t, "printf mine >own"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	settle(t, c.Upper)
	scans := fake.Calls()
	for range 3 {
		open(t, c.Path("own")).wantContent(t, "mine")
	}
	if n := fake.Calls() - scans; n != 3 {
		t.Errorf("%d scans of three opens: the container's own file is known by nothing but its identity", n)
	}
	// A verdict from before does not count, and explain says so.
	k := r.container(t, announcement(c).ID)
	k.lineage.Load().keepOwn(t, c.Path("own"), k.pool.Load().policy.Load())
	e, err := r.Explain(t.Context(), announcement(c).ID, "/own")
	if err != nil || !e.Open.Scan || e.Scanners[0].Known == nil {
		t.Errorf("what the next open would get: %+v, %v", e, err)
	}
}

// keepOwn has a clean verdict kept for a file of the container's own.
func (l *lineage) keepOwn(t *testing.T, path string, p *policy) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	id, _, err := l.identify(fd)
	if err != nil {
		t.Fatal(err)
	}
	of := p.plan.Scanner(p.names()[0])
	kept := []verdict.Kept{{Scanner: of, Current: "1", Verdict: scanner.CleanVerdict("1")}}
	if n := l.memory.Cache.Keep(l.own, verdict.FileKey(id.Bytes()), 4, kept); n != 1 {
		t.Fatalf("%d verdicts kept", n)
	}
}

// TestKernelMarksEveryFile: with room for all, every file that is read again and
// again is marked in the end.
func TestKernelMarksEveryFile(t *testing.T) {
	const files = 1500
	r := marksRig(t, files, config(layersOnly))
	c := sharing(t, 1, numberedFiles(files))[0]
	r.announced(t, c)
	paths := numbered(c, files)
	eventually(t, "every file is marked", func() bool {
		for i := range r.marks.asked { // a wish that was not granted may be repeated at once
			r.marks.asked[i].Store(0)
		}
		if _, ok := open(t, paths...).result(t); !ok {
			t.Fatal("a clean file was refused")
		}
		return r.Marks().Now == files
	})
	events := r.readers.Stats().Events
	open(t, paths...).result(t)
	if n := r.readers.Stats().Events - events; n != 0 {
		t.Errorf("%d events for marked files", n)
	}
}
