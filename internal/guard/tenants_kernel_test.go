package guard

import (
	"context"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// newWeak is a scanner that finds nothing.
func newWeak() *scannertest.Fake {
	return scannertest.NewFake("1", func(_ context.Context, _ *scanner.File, gen scanner.Generation) scanner.Verdict {
		return scanner.CleanVerdict(gen)
	})
}

// remembered opens a file, which its tenant takes for clean, until that is remembered: by
// the kernel, if the tenant wants marks.
func (r *rig) remembered(t *testing.T, c *kerneltest.Container, file, content string, marks tenant.KernelMarks, scans *scannertest.Fake) {
	t.Helper()
	eventually(t, "the verdict is known", func() bool {
		before, events := scans.Calls(), r.readers.Stats().Events
		begin(t, c.Command(t, "cat", c.Path(file))).wantContent(t, content)
		return scans.Calls() == before && (marks == tenant.MarkOff || r.readers.Stats().Events == events)
	})
}

// denied opens a file that is to be denied.
func denied(t *testing.T, c *kerneltest.Container, file string) {
	t.Helper()
	begin(t, c.Command(t, "cat", c.Path(file))).wantDenied(t)
}

// eachMarks are verdicts kept in memory alone, and with kernel marks.
func eachMarks() []tenant.KernelMarks {
	return []tenant.KernelMarks{tenant.MarkOff, tenant.MarkLayers, tenant.MarkAll}
}

// TestKernelTenantsVouchForThemselves: what one tenant's scanner says of a file of a
// layer is nothing to another tenant on that layer, whoever comes first.
func TestKernelTenantsVouchForThemselves(t *testing.T) {
	for _, marks := range eachMarks() {
		t.Run(string(marks), func(t *testing.T) {
			weak, strong := newWeak(), newContains()
			r := twoTenants(t, marks, weak, strong)
			ours, theirs := twoContainers(t, r)
			r.remembered(t, ours, "bad", needle, marks, weak)
			denied(t, theirs, "bad")
			r.remembered(t, ours, "bad", needle, marks, weak)
			denied(t, theirs, "bad")
			if n := strong.Calls(); n != 1 {
				t.Errorf("%d scans by the other tenant's scanner, want 1", n)
			}
		})
	}
	t.Run("the strong one first", func(t *testing.T) {
		weak, strong := newWeak(), newContains()
		r := twoTenants(t, tenant.MarkLayers, weak, strong)
		ours, theirs := twoContainers(t, r)
		denied(t, theirs, "bad")
		r.remembered(t, ours, "bad", needle, tenant.MarkLayers, weak)
		denied(t, theirs, "bad")
		if weak.Calls() != 1 || strong.Calls() != 1 {
			t.Errorf("%d and %d scans, want one each", weak.Calls(), strong.Calls())
		}
	})
}

// TestKernelTenantOfTwoScanners: a tenant that asks two scanners is not content with
// what is known of one of them.
func TestKernelTenantOfTwoScanners(t *testing.T) {
	for _, marks := range eachMarks() {
		t.Run(string(marks), func(t *testing.T) {
			weak, strong := newWeak(), newContains()
			cfg, scanners := tenantsConfig(marks, weak, strong)
			cfg.Tenants[0].Stages[0].Scanners = []string{"ours", "theirs"}
			r := newRig(t, weak, cfg, withMemory(t))
			r.Apply(cfg, scanners)()
			ours, both := twoContainers(t, r)
			r.remembered(t, ours, "bad", needle, marks, weak)
			denied(t, both, "bad")
		})
	}
}

// TestKernelReloadForgets: after a reload that gives a container other scanners, or
// another tenant, the next open asks those. It fails if marks are not flushed.
func TestKernelReloadForgets(t *testing.T) {
	for name, change := range map[string]func(cfg *tenant.Config, all map[string]scanner.Named, strong scanner.Scanner){
		"another scanner for the tenant": func(cfg *tenant.Config, _ map[string]scanner.Named, _ scanner.Scanner) {
			cfg.Tenants[1].Stages[0].Scanners = []string{"theirs"}
		},
		"one more scanner": func(cfg *tenant.Config, _ map[string]scanner.Named, _ scanner.Scanner) {
			cfg.Tenants[1].Stages[0].Scanners = []string{"ours", "theirs"}
		},
		"a scanner of the same name": func(cfg *tenant.Config, all map[string]scanner.Named, strong scanner.Scanner) {
			cfg.Scanners[0].Hashlist = &tenant.Hashlist{Files: []string{"/others"}}
			all["ours"] = scanner.Named{Name: "ours", Scanner: strong}
		},
		"another tenant": func(cfg *tenant.Config, _ map[string]scanner.Named, _ scanner.Scanner) {
			cfg.Tenants[0].Match = tenant.Match{Namespaces: []string{"*"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, marks := range eachMarks() {
				t.Run(string(marks), func(t *testing.T) {
					weak, strong := newWeak(), newContains()
					r := twoTenants(t, marks, weak, strong)
					c := sharing(t, 1, samples())[0]
					r.announced(t, c, inNamespace("other"))
					r.remembered(t, c, "bad", needle, marks, weak)
					cfg, all := tenantsConfig(marks, weak, strong)
					change(cfg, all, strong)
					r.Apply(cfg, all)()
					denied(t, c, "bad")
					if left := r.marks.stats().Now; left != 0 {
						t.Errorf("%d marks are left", left)
					}
				})
			}
		})
	}
}

// TestKernelOldGeneration: a verdict of a scanner that knows more by now is none: in
// memory from the next open on, and in the kernel as soon as that was noticed. One
// that was on its way while the scanner learnt is not kept. It learns here soon after
// the reload that brought it.
func TestKernelOldGeneration(t *testing.T) {
	for _, marks := range eachMarks() {
		t.Run(string(marks), func(t *testing.T) {
			weak, strong := newWeak(), newContains()
			r := twoTenants(t, marks, weak, strong)
			ours, theirs := twoContainers(t, r)
			r.remembered(t, ours, "good", "content", marks, weak)
			r.remembered(t, theirs, "fine", "fine", marks, strong)
			scans := weak.Calls()
			weak.SetGeneration("2")
			if marks != tenant.MarkOff {
				eventually(t, "the mark is flushed", func() bool { return r.marks.flushed.Load() > 0 })
			}
			begin(t, ours.Command(t, "cat", ours.Path("good"))).wantContent(t, "content")
			if n := weak.Calls() - scans; n == 0 {
				t.Error("no scan by the scanner that knows more")
			}
			scans = strong.Calls()
			begin(t, theirs.Command(t, "cat", theirs.Path("fine"))).wantContent(t, "fine") // what the other tenant knows stays
			if strong.Calls() != scans {
				t.Error("another scan by the scanner that did not change")
			}
		})
	}
}

// TestKernelGenerationMidScan: a scanner that learns while it scans leaves no verdict
// that would hold for what it knows then.
func TestKernelGenerationMidScan(t *testing.T) {
	r, s := slowRig(t)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	release := s.arm()
	first := open(t, c.Path("good"))
	receive(t, "the scan", s.started)
	s.SetGeneration("2")
	release()
	first.wantContent(t, "content")
	scans := s.Calls()
	open(t, c.Path("good")).wantContent(t, "content")
	if s.Calls() == scans {
		t.Error("the verdict of a scanner that has changed was kept")
	}
}

// TestKernelGenerationBeforeFirstLook: a scanner that comes with a reload, and learns
// something before anybody has looked at its generation, is asked about marked files.
func TestKernelGenerationBeforeFirstLook(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkLayers)
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	r.remembered(t, c, "good", "content", tenant.MarkLayers, fake)
	fake.SetGeneration("2")
	first := &generations{guard: r.Guard, known: make(map[scannerOf]scanner.Generation)}
	first.look()
	if n := r.marks.stats().Now; n != 0 {
		t.Errorf("%d marks are left from what the scanner knew before", n)
	}
}
