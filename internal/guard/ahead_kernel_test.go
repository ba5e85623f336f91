package guard

import (
	"os"
	"testing"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// aheadRig is a guard that scans ahead.
func aheadRig(t *testing.T, s scanner.Scanner, changes ...func(*tenant.Tenant)) *rig {
	t.Helper()
	with := withMemory(t) // ends last
	cfg := config(append([]func(*tenant.Tenant){func(p *tenant.Tenant) { p.OnExec, p.KernelMarks = false, tenant.MarkOff }}, changes...)...)
	return newRig(t, s, cfg, with)
}

func (r *rig) idle(t *testing.T) {
	t.Helper()
	eventually(t, "the layers are scanned", func() bool {
		p := r.Ahead()
		return p.State == ahead.Idle && p.Done > 0
	})
}

// TestKernelAhead: after the layers were scanned ahead, the first opens in any
// container on them need no scan, and what was found is refused.
func TestKernelAhead(t *testing.T) {
	fake := newContains()
	r := aheadRig(t, fake)
	all := sharing(t, 2, samples())
	r.announced(t, all[0])
	r.idle(t)
	if rec := r.next(t); rec.Op != audit.OpScan || rec.Decision != "" || rec.Verdict != "malicious" || rec.Path != "/bad" && rec.Path != "bad" {
		t.Errorf("the record is %+v", rec)
	}
	scans := fake.Calls()
	r.announced(t, all[1])
	for _, c := range all {
		open(t, c.Path("good")).wantContent(t, "content")
		open(t, c.Path("bad")).wantDenied(t)
	}
	if n := fake.Calls(); n != scans || scans != 2 {
		t.Errorf("%d scans ahead, %d afterwards, want 2 and none", scans, n-scans)
	}
	for range all {
		if rec := r.next(t); rec.Source != sourceCache || rec.Reason != audit.ReasonMalicious || !rec.File.Pristine {
			t.Errorf("the record is %+v", rec)
		}
	}
}

// TestKernelAheadNotWhatChanged: what the container made of a layer's file is not
// what was scanned.
func TestKernelAheadNotWhatChanged(t *testing.T) {
	r := aheadRig(t, newContains())
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	r.idle(t)
	if out, err := c.Shell(t, "printf %s "+needle+" >good"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	open(t, c.Path("good")).wantDenied(t)
}

// TestKernelAheadOvertaken: an opener never waits for a scan ahead, not even for that
// of its own file.
func TestKernelAheadOvertaken(t *testing.T) {
	s := newStubborn(t, clean)
	r := aheadRig(t, s)
	c := sharing(t, 1, map[string]string{"a": "1", "b": "22", "c": "333"})[0]
	r.announced(t, c)
	s.began(t) // of "a", ahead
	first := open(t, c.Path("c"))
	s.began(t) // of "c", for the opener
	second := open(t, c.Path("a"))
	s.began(t) // of "a", for the opener
	s.release()
	first.wantContent(t, "333")
	second.wantContent(t, "1")
	r.idle(t)
	if n := s.Calls(); n != 4 {
		t.Errorf("%d scans, want three and one more for the opener who did not wait", n)
	}
}

// TestKernelRescan: after a new generation the files that were in use are scanned
// again before anybody opens them, and no others.
func TestKernelRescan(t *testing.T) {
	fake := newContains()
	r := aheadRig(t, fake, func(p *tenant.Tenant) { p.ScanAhead = tenant.AheadOff })
	c := sharing(t, 1, map[string]string{"used": "content", "unused": "something"})[0]
	r.announced(t, c)
	open(t, c.Path("used")).wantContent(t, "content")
	fake.SetGeneration("2")
	r.idle(t)
	if n := fake.Calls(); n != 2 {
		t.Errorf("%d scans, want one of the used file under each generation", n)
	}
	open(t, c.Path("used")).wantContent(t, "content")
	if n := fake.Calls(); n != 2 {
		t.Errorf("%d scans after the rescan", n-2)
	}
}

// TestKernelAheadAfterRescan: a layer whose used files were scanned again is still
// scanned as a whole when somebody wants that.
func TestKernelAheadAfterRescan(t *testing.T) {
	fake := newContains()
	r := aheadRig(t, fake, func(p *tenant.Tenant) { p.ScanAhead = tenant.AheadOff })
	c := sharing(t, 1, map[string]string{"used": "content", "unused": "something"})[0]
	r.announced(t, c)
	open(t, c.Path("used")).wantContent(t, "content")
	fake.SetGeneration("2")
	r.idle(t)
	k := r.container(t, announcement(c).ID)
	r.enqueue(k, k.pool.Load().policy.Load(), false)
	eventually(t, "the rest is scanned", func() bool { return r.Ahead().Done == 2 })
	if n := fake.Calls(); n != 3 {
		t.Errorf("%d scans, want the used file twice and the unused one once", n)
	}
}

// TestKernelWaitForOpens: with onNewGeneration: wait nothing is scanned until then.
func TestKernelWaitForOpens(t *testing.T) {
	fake := newContains()
	r := aheadRig(t, fake, func(p *tenant.Tenant) { p.ScanAhead, p.OnGeneration = tenant.AheadOff, tenant.GenerationWait })
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	open(t, c.Path("good")).wantContent(t, "content")
	pool := r.container(t, announcement(c).ID).pool.Load()
	epoch := pool.epoch.Load()
	fake.SetGeneration("2")
	eventually(t, "the new generation is noticed", func() bool { return pool.epoch.Load() != epoch })
	if p := r.Ahead(); p.Queued+p.Done != 0 || fake.Calls() != 1 {
		t.Errorf("scanned %d times: %+v", fake.Calls(), p)
	}
	open(t, c.Path("good")).wantContent(t, "content")
	if n := fake.Calls(); n != 2 {
		t.Errorf("%d scans after the open, want 2", n)
	}
}

// TestKernelAheadLayerGone: a layer that was removed, or is another one by now, is
// not scanned for the one that it was.
func TestKernelAheadLayerGone(t *testing.T) {
	fake := scannertest.NewFake("1", scannertest.Contains(needle, "Test.Malware"))
	r := aheadRig(t, fake)
	r.PauseAhead(true)
	o := kerneltest.NewOverlay(t, samples())
	c := kerneltest.StartContainer(t, o, "")
	r.announced(t, c)
	if err := os.Rename(o.Lower, o.Lower+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Lower, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.Lower+"/good", []byte("another layer's"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.PauseAhead(false)
	eventually(t, "the layer is given up", func() bool { return r.Ahead().Gone == 1 })
	if n := fake.Calls(); n != 0 {
		t.Errorf("%d scans of what is no layer of the container", n)
	}
}
