package guard

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestKernelApply changes the policy of a running container.
func TestKernelApply(t *testing.T) {
	before, after := newContains(), scannertest.NewFake("2", scannertest.Contains("content", "Test.Content"))
	r := newRig(t, before, config())
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	c.Pivot(t) // a reload finds containers that run
	open(t, c.Path("good")).wantContent(t, "content")
	open(t, c.Path("bad")).wantDenied(t)
	cfg := config()
	r.Apply(cfg, named(cfg, after))()
	if err := before.Close(); err != nil {
		t.Error(err)
	}
	open(t, c.Path("good")).wantDenied(t)
	open(t, c.Path("bad")).wantContent(t, needle)
	eventually(t, "all answers are counted, the first ones still", func() bool {
		n := r.Tenants()[0].Answers
		return n.Allowed == 2 && n.Denied == 2
	})
}

// TestKernelApplyMoves moves a running container to another tenant, and back when
// that one is gone.
func TestKernelApplyMoves(t *testing.T) {
	scans := newContains()
	r := newRig(t, scans, config())
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c, inNamespace("pay"))
	c.Pivot(t)
	tenantOf := func() string { return r.Containers()[0].Tenant }
	if got := tenantOf(); got != "default" {
		t.Errorf("the tenant is %s", got)
	}
	cfg := withTenant(config(), "payments", "pay", func(p *tenant.Tenant) { p.Mode = tenant.Audit })
	r.Apply(cfg, named(cfg, scans))()
	if got := tenantOf(); got != "payments" {
		t.Errorf("the tenant is %s", got)
	}
	open(t, c.Path("bad")).wantContent(t, needle)
	if got := r.next(t); got.Tenant != "payments" || got.Reason != audit.ReasonAuditMode {
		t.Errorf("the record is %+v", got)
	}
	cfg = config()
	r.Apply(cfg, named(cfg, scans))()
	open(t, c.Path("bad")).wantDenied(t)
	if got := r.next(t); got.Tenant != "default" || tenantOf() != "default" {
		t.Errorf("the record is %+v", got)
	}
}

// TestKernelApplyWidens: a policy that wants more events gets them for running
// containers too.
func TestKernelApplyWidens(t *testing.T) {
	scans := newContains()
	r := newRig(t, scans, config(func(p *tenant.Tenant) { p.OnOpen = false }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	c.Pivot(t)
	open(t, c.Path("bad")).wantContent(t, needle)
	cfg := config()
	r.Apply(cfg, named(cfg, scans))()
	open(t, c.Path("bad")).wantDenied(t)
	cfg = config(func(p *tenant.Tenant) { p.OnOpen = false })
	r.Apply(cfg, named(cfg, scans))()
	open(t, c.Path("bad")).wantContent(t, needle)
	// Counted after the answer.
	eventually(t, "the event that nobody wants is counted", func() bool {
		return r.Tenants()[0].Answers.Reasons[audit.ReasonNotSelected.String()] == 1
	})
}

// reloading is a context that reloads once it is asked how it is: when the marks
// of a new container are in place and it is not yet in the guard's list.
type reloading struct {
	context.Context
	reload func()
	once   *sync.Once
}

func (c reloading) Err() error {
	c.once.Do(c.reload)
	return c.Context.Err()
}

// TestKernelApplyDuringAnnounce: a reload between a container's marks and its
// entry must reach it as any other.
func TestKernelApplyDuringAnnounce(t *testing.T) {
	scans := newContains()
	r := newRig(t, scans, config(func(p *tenant.Tenant) { p.OnOpen = false }))
	c := kerneltest.NewContainer(t, samples(), "")
	ctx := reloading{t.Context(), func() {
		cfg := config()
		r.Apply(cfg, named(cfg, scans))()
	}, &sync.Once{}}
	if _, err := r.Announce(ctx, announcement(c)); err != nil {
		t.Fatal(err)
	}
	open(t, c.Path("bad")).wantDenied(t)
}

// TestKernelApplyDrains: the replaced scanners are waited for, and not the others.
func TestKernelApplyDrains(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = time.Hour }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	first := open(t, c.Path("good"))
	s.began(t)
	cfg := config()
	drained := r.Apply(cfg, named(cfg, newContains()))
	open(t, c.Path("bad")).wantDenied(t) // by the new one, meanwhile
	over := make(chan struct{})
	go func() {
		drained()
		close(over)
	}()
	open(t, c.Path("bad")).wantDenied(t)
	select {
	case <-over:
		t.Error("drained before the last scan ended")
	default:
	}
	s.release()
	receive(t, "the drain", over)
	first.wantContent(t, "content")
}

// TestKernelApplyRemovesTenant removes a tenant whose queue is not empty: what is
// queued is still answered, and the workers end.
func TestKernelApplyRemovesTenant(t *testing.T) {
	s := newStubborn(t, clean)
	cfg := withTenant(config(), "payments", "pay", func(p *tenant.Tenant) { p.Deadline = time.Hour })
	r := newRig(t, s, cfg, func(o *Options) { o.Workers = 1 })
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c, inNamespace("pay"))
	gone := r.pools["payments"]
	first := open(t, c.Path("good"))
	s.began(t)
	queued := []*opener{open(t, c.Path("good")), open(t, c.Path("bad"))}
	eventually(t, "the others are queued", func() bool { return len(gone.queue) == 2 })
	cfg = config()
	drained := r.Apply(cfg, named(cfg, newContains()))
	over := make(chan struct{})
	go func() {
		drained()
		close(over)
	}()
	s.release()
	receive(t, "the drain", over)
	first.wantContent(t, "content")
	queued[0].wantContent(t, "content") // by the scanners of the tenant it has now
	queued[1].wantDenied(t)
	eventually(t, "the workers of the tenant that is gone end", func() bool { return gone.crew.workers.Load() == 0 })
	eventually(t, "the descriptors are released", func() bool { return r.held.n.Load() == 0 })
}

// TestKernelSharedGroup lets containers share a group where the kernel allows no
// more, and ends one of them.
func TestKernelSharedGroup(t *testing.T) {
	r := newRig(t, newContains(), config())
	noMoreGroups(t, r)
	one, two := kerneltest.NewContainer(t, samples(), ""), kerneltest.NewContainer(t, samples(), "")
	r.announced(t, one)
	r.announced(t, two)
	a, b := r.container(t, announcement(one).ID), r.container(t, announcement(two).ID)
	if a.group != b.group || a.sharing == nil {
		t.Fatal("they do not share a group")
	}
	for _, c := range []*kerneltest.Container{one, two} {
		begin(t, c.Command(t, "cat", c.Path("bad"))).wantDenied(t)
		if got := r.next(t); got.Reason != audit.ReasonMalicious {
			t.Errorf("the record is %+v", got)
		}
		open(t, c.Path("good")).wantContent(t, "content")
		r.next(t)
	}
	one.Kill()
	eventually(t, "one is released", func() bool { return len(r.Containers()) == 1 })
	open(t, two.Path("bad")).wantDenied(t)
	if got := r.next(t); got.Container.ID != announcement(two).ID {
		t.Errorf("the record is %+v", got)
	}
	two.Kill()
	eventually(t, "both are released", func() bool { return len(r.Containers()) == 0 })
}

// TestKernelSharedGroupEmpty: when a shared group has no member left, nobody is
// guarded by it, so it may not deny anybody's opens.
func TestKernelSharedGroupEmpty(t *testing.T) {
	r := newRig(t, newContains(), config())
	noMoreGroups(t, r)
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	open(t, c.Path("good")).wantContent(t, "content")
	c.Kill()
	eventually(t, "it is released", func() bool { return len(r.Containers()) == 0 })
	open(t, c.Path("good")).wantContent(t, "content")
}

// TestKernelSharedGroupSplit: a reload puts the members of a shared group into
// two tenants; each still meets its own policy.
func TestKernelSharedGroupSplit(t *testing.T) {
	scans := newContains()
	r := newRig(t, scans, config())
	noMoreGroups(t, r)
	strict, lax := kerneltest.NewContainer(t, samples(), ""), kerneltest.NewContainer(t, samples(), "")
	r.announced(t, strict)
	r.announced(t, lax, inNamespace("lax"))
	cfg := withTenant(config(), "lax", "lax", func(p *tenant.Tenant) { p.Mode = tenant.Audit })
	r.Apply(cfg, named(cfg, scans))()
	begin(t, strict.Command(t, "cat", strict.Path("bad"))).wantDenied(t)
	begin(t, lax.Command(t, "cat", lax.Path("bad"))).wantContent(t, needle)
	// Through a mount that came later it cannot be told whose the event is.
	for _, c := range []*kerneltest.Container{strict, lax} {
		begin(t, c.Command(t, "unshare", "--mount", "cat", c.Path("bad"))).wantDenied(t)
	}
}

// TestKernelGroupLimitRefused: without even a shared group nothing is guarded,
// and that is said.
func TestKernelGroupLimitRefused(t *testing.T) {
	r := newRig(t, newContains(), config())
	noMoreGroups(t, r)
	r.pools["default"].shared.close()
	c := kerneltest.NewContainer(t, samples(), "")
	if _, err := r.announce(t, announcement(c)); statusOf(err) != 503 || !errors.Is(err, fanotify.ErrGroupLimit) {
		t.Errorf("announced without a group: %v", err)
	}
	open(t, c.Path("bad")).wantContent(t, needle)
}

func noMoreGroups(t *testing.T, r *rig) {
	t.Helper()
	r.newGroup = func() (*fanotify.Group, error) { return nil, fanotify.ErrGroupLimit }
}

// TestKernelVolumeSuperblock: volumeMarks: superblock sees a volume through every
// mount, and lets go of it with its container.
func TestKernelVolumeSuperblock(t *testing.T) {
	for _, shared := range []bool{false, true} {
		name := map[bool]string{false: "own group", true: "shared group"}[shared]
		t.Run(name, func(t *testing.T) {
			r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.VolumeMarks = tenant.VolumeSuperblock }))
			if shared {
				noMoreGroups(t, r)
			}
			volume := t.TempDir()
			kerneltest.Mount(t, "none", volume, "tmpfs", 0, "")
			if err := os.WriteFile(volume+"/bad", []byte(needle), 0o600); err != nil {
				t.Fatal(err)
			}
			c := kerneltest.NewContainer(t, map[string]string{"vol/x": ""}, "mount --bind "+volume+" vol")
			r.announced(t, c)
			mounts := r.Containers()[0].Mounts
			if !slices.ContainsFunc(mounts, func(m Mount) bool { return m.Destination == "/vol" && m.Kind == MarkSuperblock }) {
				t.Errorf("the marks are %+v", mounts)
			}
			open(t, volume+"/bad").wantDenied(t)
			c.Kill()
			eventually(t, "it is released", func() bool { return len(r.Containers()) == 0 })
			open(t, volume+"/bad").wantContent(t, needle)
		})
	}
}

// TestKernelApplyAllTheTime reloads while containers come and go and read: every
// opener gets an answer of one of the policies, and nothing is left.
func TestKernelApplyAllTheTime(t *testing.T) {
	scans := newContains()
	configs := []*tenant.Config{
		config(),
		config(func(p *tenant.Tenant) { p.OnExec = false }),
		config(func(p *tenant.Tenant) { p.ExcludeMounts = []string{"/vol"} }),
		withTenant(config(), "payments", "pay"),
	}
	r := newRig(t, scans, configs[0])
	over := make(chan struct{})
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			cfg := configs[i%len(configs)]
			r.Apply(cfg, named(cfg, scans))()
			r.Tenants()
			r.Containers()
		}
	})
	var containers sync.WaitGroup
	for range 3 {
		containers.Go(func() {
			for range 4 {
				c := kerneltest.NewContainer(t, map[string]string{"good": "content", "bad": needle, "vol/x": ""}, "mount -t tmpfs none vol")
				if _, err := r.Announce(t.Context(), announcement(c, inNamespace("pay"))); err != nil {
					t.Error(err)
					return
				}
				for _, o := range []*opener{open(t, c.Path("good")), open(t, c.Path("bad"))} {
					o.result(t)
				}
				c.Kill()
			}
		})
	}
	containers.Wait()
	close(over)
	reloads.Wait()
	eventually(t, "all are released", func() bool { return len(r.Containers()) == 0 && r.held.n.Load() == 0 })
}

// TestUsePolicyOfAReleasedContainer: a reload does not move a container that has
// been released. A worker that still has to begin for it must not look for its
// policy for ever.
func TestUsePolicyOfAReleasedContainer(t *testing.T) {
	c := &container{}
	c.ctx, c.cancel = context.WithCancelCause(t.Context())
	p := newTestPool(1, 1)
	c.pool.Store(p)
	c.cancel(errStopping)
	p.policy.Load().retire()
	found := make(chan *policy, 1)
	go func() { found <- c.usePolicy() }()
	select {
	case got := <-found:
		if got != nil {
			t.Error("a retired policy is used")
		}
	case <-time.After(patience):
		t.Error("the worker looks for a policy for ever")
		p.policy.Store(&policy{}) // which it finds
		<-found
	}
}
