package guard

import (
	"testing"
	"time"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// slowRig is a guard with a memory and a slow scanner.
func slowRig(t *testing.T, changes ...func(*tenant.Tenant)) (*rig, *slow) {
	t.Helper()
	s := newSlow(scannertest.Contains(needle, "Test.Malware"))
	with := withMemory(t)
	basic := func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec, p.Deadline = tenant.MarkOff, tenant.AheadOff, false, time.Hour
	}
	return newRig(t, s, config(append([]func(*tenant.Tenant){basic}, changes...)...), with), s
}

// waiters starts openers who wait for a scan that is under way.
func (r *rig) waiters(t *testing.T, n int, paths ...string) []*opener {
	t.Helper()
	var all []*opener
	joined := r.joined()
	for _, p := range paths {
		for range n {
			all = append(all, open(t, p))
		}
	}
	eventually(t, "they wait for the scan", func() bool { return r.joined() == joined+uint64(len(all)) })
	return all
}

// TestKernelCoalesced: openers of a layer's file in several containers, and of a
// container's own file in that one, make one scan.
func TestKernelCoalesced(t *testing.T) {
	r, s := slowRig(t)
	containers := sharing(t, 4, samples())
	var good, bad []string
	for _, c := range containers {
		r.announced(t, c)
		good, bad = append(good, c.Path("good")), append(bad, c.Path("bad"))
	}
	if out, err := containers[0].Shell(t, "echo fine >own"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "the own file's change is some time ago", settledSince(time.Now()))
	for _, file := range []struct {
		paths []string
		want  string // "" for none
	}{{good, "content"}, {bad, ""}, {[]string{containers[0].Path("own")}, "fine\n"}} {
		scans, release := s.Calls(), s.arm()
		all := []*opener{open(t, file.paths[0])}
		receive(t, "the scan", s.started)
		all = append(all, r.waiters(t, 5, file.paths...)...)
		release()
		for _, o := range all {
			if file.want == "" {
				o.wantDenied(t)
			} else {
				o.wantContent(t, file.want)
			}
		}
		if n := s.Calls() - scans; n != 1 {
			t.Errorf("%s: %d scans for %d openers", file.paths[0], n, len(all))
		}
	}
}

// settledSince reports whether a change at a time is long enough ago for a verdict.
func settledSince(at time.Time) func() bool {
	return func() bool { return time.Since(at) > 2*settled }
}

// TestKernelOwnerKilled: a scan goes on when the opener that it was begun for is
// killed, and those who wait have its verdict.
func TestKernelOwnerKilled(t *testing.T) {
	r, s := slowRig(t)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	for _, file := range []string{"good", "bad"} {
		scans, release := s.Calls(), s.arm()
		owner := open(t, c.Path(file))
		receive(t, "the scan", s.started)
		waiter := r.waiters(t, 1, c.Path(file))[0]
		if err := owner.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, ok := owner.result(t); ok {
			t.Error("the owner was not killed")
		}
		release()
		if file == "good" {
			waiter.wantContent(t, "content")
		} else {
			waiter.wantDenied(t)
		}
		if n := s.Calls() - scans; n != 1 {
			t.Errorf("%s: %d scans", file, n)
		}
	}
}

// TestKernelOwnerContainerEnds: when the container ends that a scan was begun for, a
// waiter in another container begins one of its own, and the others wait for that.
func TestKernelOwnerContainerEnds(t *testing.T) {
	r, s := slowRig(t)
	containers := sharing(t, 3, samples())
	for _, c := range containers {
		r.announced(t, c)
	}
	for i, file := range []string{"bad", "good"} {
		s.arm()
		owner := open(t, containers[i].Path(file))
		receive(t, "the scan", s.started)
		waiters := r.waiters(t, 3, containers[2].Path(file))
		scans := s.Calls()
		containers[i].Kill()
		for _, w := range waiters {
			if file == "good" {
				w.wantContent(t, "content")
			} else {
				w.wantDenied(t)
			}
		}
		owner.result(t)
		if n := s.Calls() - scans; n != 1 {
			t.Errorf("%s: %d scans by those who were left", file, n)
		}
	}
}

// TestKernelOwnerDeadline: when the deadline of the opener that a scan was begun for
// comes, it is denied, and a waiter that came later begins a scan of its own.
func TestKernelOwnerDeadline(t *testing.T) {
	const deadline = 2 * time.Second
	r, s := slowRig(t, func(p *tenant.Tenant) { p.Deadline = deadline })
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	s.arm()
	began := time.Now()
	owner := open(t, c.Path("good"))
	receive(t, "the scan", s.started)
	eventually(t, "half of the owner's time is over", func() bool { return time.Since(began) > deadline/2 })
	waiter := r.waiters(t, 1, c.Path("good"))[0]
	owner.wantDenied(t)
	waiter.wantContent(t, "content")
	if n := s.Calls(); n != 2 {
		t.Errorf("%d scans, want the owner's and the waiter's", n)
	}
}

// TestKernelNoWaitingAcrossTenants: openers of different tenants do not wait for each
// other's scans of the file of a layer that they share.
func TestKernelNoWaitingAcrossTenants(t *testing.T) {
	quick := newContains()
	s := newSlow(scannertest.Contains(needle, "Test.Malware"))
	r := twoTenants(t, tenant.MarkOff, s, quick)
	ours, theirs := twoContainers(t, r)
	release := s.arm()
	owner := open(t, ours.Path("good"))
	receive(t, "the scan", s.started)
	joined := r.joined()
	open(t, theirs.Path("good")).wantContent(t, "content")
	open(t, theirs.Path("bad")).wantDenied(t)
	if r.joined() != joined || quick.Calls() != 2 {
		t.Errorf("%d waited, %d scans", r.joined()-joined, quick.Calls())
	}
	release()
	owner.wantContent(t, "content")
}

// twoTenants is a guard with the default tenant, which has the scanner ours, and the
// tenant "payments", which has theirs.
func twoTenants(t *testing.T, marks tenant.KernelMarks, ours, theirs scanner.Scanner) *rig {
	t.Helper()
	with := withMemory(t)
	cfg, scanners := tenantsConfig(marks, ours, theirs)
	r := newRig(t, ours, cfg, with)
	r.Apply(cfg, scanners)()
	return r
}

// tenantsConfig is the configuration of twoTenants, with its scanners.
func tenantsConfig(marks tenant.KernelMarks, ours, theirs scanner.Scanner) (*tenant.Config, map[string]scanner.Named) {
	use := func(name string) func(*tenant.Tenant) {
		return func(p *tenant.Tenant) {
			p.KernelMarks, p.ScanAhead, p.OnExec, p.Deadline = marks, tenant.AheadOff, false, time.Hour
			p.Stages = []tenant.Stage{{Scanners: []string{name}}}
		}
	}
	cfg := withTenant(config(use("ours")), "payments", "pay", use("theirs"))
	cfg.Scanners = []tenant.Scanner{{Name: "ours", Hashlist: &tenant.Hashlist{Files: []string{"/ours"}}}, {Name: "theirs", Hashlist: &tenant.Hashlist{Files: []string{"/theirs"}}}}
	return cfg, map[string]scanner.Named{"ours": {Name: "ours", Scanner: ours}, "theirs": {Name: "theirs", Scanner: theirs}}
}

// twoContainers are one of each tenant of twoTenants, on one layer.
func twoContainers(t *testing.T, r *rig) (ours, theirs *kerneltest.Container) {
	t.Helper()
	both := sharing(t, 2, samples())
	r.announced(t, both[0])
	r.announced(t, both[1], inNamespace("pay"))
	return both[0], both[1]
}
