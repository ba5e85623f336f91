package guard

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
)

// TestKernelStartUnguarded: a container that cannot be guarded starts if its tenant says
// so, or only audits. Whatever comes of it is counted and recorded.
func TestKernelStartUnguarded(t *testing.T) {
	for name, tc := range map[string]struct {
		change   func(*tenant.Tenant)
		late     bool
		starts   bool
		decision string
	}{
		"deny":      {func(*tenant.Tenant) {}, false, false, "deny"},
		"allow":     {func(p *tenant.Tenant) { p.OnUnguarded = tenant.Allow }, false, true, "allow"},
		"audit":     {func(p *tenant.Tenant) { p.Mode = tenant.Audit }, false, true, "allow"},
		"runs-deny": {func(*tenant.Tenant) {}, true, false, "allow"}, // nobody can hold it back
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, newContains(), config(tc.change))
			c := kerneltest.NewContainer(t, map[string]string{"vol/x": ""}, `mount -t tmpfs none vol`)
			a := announcement(c, func(a *announce.Container) {
				a.Rootfs, a.Late, a.Namespace, a.Pod = a.Rootfs+"/vol", tc.late, "pay", "web-0"
			})
			g, err := r.announce(t, a)
			if started := err == nil; started != tc.starts || started != (g.Unguarded != "") {
				t.Errorf("it starts: %v, the reply is %+v, error %v", started, g, err)
			}
			rec := r.next(t)
			if rec.Op != audit.OpStart || rec.Reason != audit.ReasonUnguarded || rec.Decision != tc.decision || rec.Tenant != "default" ||
				rec.Container.ID != a.ID || rec.Container.Namespace != "pay" || rec.Container.Pod != "web-0" || !strings.Contains(rec.Detail, "not an overlay") {
				t.Errorf("the record is %+v", rec)
			}
			if n := r.Tenants()[0].Answers.Reasons["unguarded"]; n != 1 {
				t.Errorf("%d are counted", n)
			}
		})
	}
}

// TestKernelStartGone: of a container that has ended nothing ran unguarded.
func TestKernelStartGone(t *testing.T) {
	r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.OnUnguarded = tenant.Allow }))
	c := kerneltest.NewContainer(t, samples(), "")
	if _, err := r.announce(t, announcement(c, func(a *announce.Container) { a.PID = ended(t) })); statusOf(err) != 410 {
		t.Errorf("error %v", err)
	}
	if n := r.Tenants()[0].Answers.Reasons["unguarded"]; n != 0 {
		t.Errorf("%d are counted", n)
	}
}

// TestKernelStartUnknown: what cannot be told whose it is does not start, whatever a
// tenant says.
func TestKernelStartUnknown(t *testing.T) {
	silent := errors.New("containerd does not answer")
	r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.OnUnguarded = tenant.Allow }), func(o *Options) {
		o.Complete = func(_ context.Context, c *announce.Container) error {
			if c.Namespace == "" {
				return silent
			}
			c.Image = "shop:1"
			return nil
		}
	})
	c := kerneltest.NewContainer(t, samples(), "")
	if _, err := r.announce(t, announcement(c)); !errors.Is(err, silent) || statusOf(err) != 503 {
		t.Errorf("error %v", err)
	}
	if rec := r.next(t); rec.Decision != "deny" || rec.Reason != audit.ReasonUnguarded {
		t.Errorf("the record is %+v", rec)
	}
	r.announced(t, c, inNamespace("pay"))
	open(t, c.Path("bad")).wantDenied(t)
	if rec := r.next(t); rec.Container.Image != "shop:1" {
		t.Errorf("the record is of %+v", rec.Container)
	}
}

// TestKernelStartAgain: what is missing of a container is asked for once, however often
// it is announced.
func TestKernelStartAgain(t *testing.T) {
	asked := 0
	r := newRig(t, newContains(), config(), func(o *Options) {
		o.Complete = func(context.Context, *announce.Container) error {
			asked++
			return nil
		}
	})
	c := kerneltest.NewContainer(t, samples(), "")
	for range 3 {
		if g := r.announced(t, c); g.Marks == 0 {
			t.Errorf("the reply is %+v", g)
		}
	}
	if asked != 1 {
		t.Errorf("it was asked %d times", asked)
	}
}

// TestKernelLate: a container that ran before it was guarded is recorded as such, once,
// and guarded from then on.
func TestKernelLate(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	late := func(a *announce.Container) { a.Late = true }
	r.announced(t, c, late)
	rec := r.next(t)
	if rec.Op != audit.OpLate || rec.Reason != audit.ReasonLate || rec.Decision != "" || rec.PID != c.PID || !strings.Contains(rec.Detail, "had been running for") {
		t.Errorf("the record is %+v", rec)
	}
	r.announced(t, c, late) // whoever connects again says it again
	open(t, c.Path("bad")).wantDenied(t)
	if rec := r.next(t); rec.Op == audit.OpLate || rec.Decision != "deny" {
		t.Errorf("the next record is %+v", rec)
	}
}

// TestKernelTenantByLabels: trusted labels of the pod and labels of its namespace choose
// the tenant, others do not, and records name those that the configuration chooses.
func TestKernelTenantByLabels(t *testing.T) {
	cfg := withTenant(config(), "strict", "*")
	cfg.Tenants[0].Match = tenant.Match{PodLabels: map[string]string{"tier": "pci"}}
	cfg.Trust.PodLabels, cfg.RecordLabels = []string{"tier"}, []string{"app", "absent"}
	r := newRig(t, newContains(), cfg)
	for want, labels := range map[string]map[string]string{
		"strict":  {"tier": "pci", "app": "web", "secret": "x"},
		"default": {"tier": "none", "app": "web"},
	} {
		c := kerneltest.NewContainer(t, samples(), "")
		g := r.announced(t, c, func(a *announce.Container) {
			a.Namespace, a.PodLabels = "pay", labels
			a.Labels = map[string]string{"tier": "pci", "assay.example/exempt": "true"} // the container's own word
		})
		if g.Tenant != want {
			t.Errorf("labels %v: the tenant is %q, want %q", labels, g.Tenant, want)
		}
		open(t, c.Path("bad")).wantDenied(t)
		if rec := r.next(t); !maps.Equal(rec.Container.Labels, map[string]string{"app": "web"}) {
			t.Errorf("the record has the labels %v", rec.Container.Labels)
		}
	}
}
