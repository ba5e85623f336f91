package guard

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// lost is a scanner whose first scan does not come back until release is called.
func lost(t *testing.T) (s *scannertest.Fake, began chan struct{}, release func()) {
	t.Helper()
	over, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	began = make(chan struct{}, 1)
	var scans atomic.Int64
	return scannertest.NewFake("1", func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict {
		if scans.Add(1) == 1 {
			began <- struct{}{}
			<-over.Done()
		}
		return clean()
	}), began, end
}

// TestKernelStuckWorker: a scan that never comes back costs its opener the deadline
// and the tenant nothing for long, not even for the same file.
func TestKernelStuckWorker(t *testing.T) {
	s, began, release := lost(t)
	with := withMemory(t) // ends last
	r := newRig(t, s, config(func(p *tenant.Tenant) {
		p.Deadline, p.OnExec, p.ScanAhead = 100*time.Millisecond, false, tenant.AheadOff
	}), with, func(o *Options) { o.Workers = 1 })
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	first := open(t, c.Path("good"))
	receive(t, "the scan that does not come back", began)
	first.wantDenied(t)
	eventually(t, "nobody waits any more", func() bool { return r.Tenants()[0].Pending == 0 })
	open(t, c.Path("bad")).wantDenied(t) // nobody is there to scan it
	p := r.pool("default")
	if n := p.crew.writeOff(100 * time.Millisecond); n != 1 {
		t.Fatalf("%d workers were written off, want 1", n)
	}
	if st := r.Tenants()[0]; st.Stuck != 1 || st.InFlight != 0 {
		t.Errorf("the status is %+v, want one stuck worker", st)
	}
	for _, h := range r.Look() {
		if h.Stuck != 1 || h.Exhausted || h.Overdue {
			t.Errorf("%+v, want one stuck worker", h)
		}
	}
	open(t, c.Path("bad")).wantContent(t, needle) // this scanner finds nothing
	open(t, c.Path("good")).wantContent(t, "content")
	release()
	eventually(t, "it is back", func() bool { return r.Tenants()[0].Stuck == 0 })
}

// TestKernelExhausted: when no worker is left, openers are answered at once by
// onTimeout, for another tenant nothing changes, and all is well when scans come back.
func TestKernelExhausted(t *testing.T) {
	s := newStubborn(t, clean)
	cfg := withTenant(config(), "lost", "lost", func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = tenant.Allow, time.Hour })
	r := newRig(t, s, cfg, func(o *Options) { o.Workers = 1 })
	c := kerneltest.NewContainer(t, samples(), "")
	neighbour := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c, inNamespace("lost"))
	r.announced(t, neighbour)
	p := r.pool("lost")
	var stuck []*opener
	for range crewFactor {
		stuck = append(stuck, open(t, c.Path("good")))
		s.began(t)
		p.crew.writeOff(0)
	}
	open(t, c.Path("bad")).wantContent(t, needle) // an hour before its deadline
	if got := r.next(t); got.Reason != audit.ReasonOverload || got.Decision != "allow" {
		t.Errorf("the record is %+v", got)
	}
	other := open(t, neighbour.Path("good"))
	s.began(t)
	s.release()
	for _, o := range append(stuck, other) {
		o.wantContent(t, "content")
	}
	eventually(t, "all workers are back", func() bool { return r.Tenants()[0].Stuck == 0 && !p.crew.exhausted.Load() })
	open(t, c.Path("good")).wantContent(t, "content")
}

// TestKernelWhoWaits: the openers that wait are counted, with the age of the first.
func TestKernelWhoWaits(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = time.Hour }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	if st := r.Tenants()[0]; st.Pending != 0 || st.Oldest != 0 {
		t.Errorf("%+v before anybody came", st)
	}
	began := time.Now()
	first := open(t, c.Path("good"))
	s.began(t)
	second := open(t, c.Path("good"))
	s.began(t)
	st := r.Tenants()[0]
	if st.Pending != 2 || st.Held != 2 || st.Oldest <= 0 || st.Oldest > time.Since(began) {
		t.Errorf("%d wait, the first for %v", st.Pending, st.Oldest)
	}
	s.release()
	first.wantContent(t, "content")
	second.wantContent(t, "content")
	eventually(t, "nobody waits", func() bool { st := r.Tenants()[0]; return st.Pending == 0 && st.Oldest == 0 })
}

// TestKernelUnread: an opener whose event no reader has taken waits as well.
func TestKernelUnread(t *testing.T) {
	r := newRig(t, newContains(), config())
	o := kerneltest.NewOverlay(t, samples())
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	dirfd, err := unix.Open(o.Merged, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	if err := group.MarkSuperblock(dirfd, fanotify.OpOpen, o.Merged); err != nil {
		t.Fatal(err)
	}
	p := r.pool("default")
	c := &container{guard: r.Guard, group: group}
	c.pool.Store(p)
	opener := open(t, o.Path("good"))
	eventually(t, "the event is counted", func() bool { return p.unread(map[string]*container{"c": c}) == 1 })
	group.Close()
	opener.wantContent(t, "content")
	if n := p.unread(map[string]*container{"c": c}); n != 0 {
		t.Errorf("a closed group has %d events", n)
	}
}

// TestOverdue: an opener that waits long after its deadline is noticed.
func TestOverdue(t *testing.T) {
	p := newTestPool(1, 1)
	k := &task{policy: &policy{Tenant: tenant.Tenant{Deadline: time.Minute}}}
	for age, want := range map[time.Duration]bool{time.Second: false, time.Minute + late/2: false, time.Minute + 2*late: true} {
		k.began = time.Now().Add(-age)
		p.waiting.add(k)
		if h := p.look(time.Now()); h.Overdue != want || h.Oldest < age {
			t.Errorf("after %v: %+v", age, h)
		}
		p.waiting.remove(k)
	}
}

// TestKernelTenantLeavesRoom: a tenant cannot take the last descriptors from another.
func TestKernelTenantLeavesRoom(t *testing.T) {
	s := newStubborn(t, clean)
	longer := func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = tenant.Allow, time.Hour }
	r := newRig(t, s, withTenant(config(longer), "flooded", "flood", longer), func(o *Options) { o.MaxHeld = 5 })
	flooded := kerneltest.NewContainer(t, samples(), "")
	neighbour := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, flooded, inNamespace("flood"))
	r.announced(t, neighbour)
	var held []*opener
	for range 2 {
		held = append(held, open(t, flooded.Path("good")))
		s.began(t)
	}
	open(t, flooded.Path("bad")).wantContent(t, needle) // not scanned
	if got := r.next(t); got.Reason != audit.ReasonOverload {
		t.Errorf("the record is %+v", got)
	}
	held = append(held, open(t, neighbour.Path("good")))
	s.began(t)
	s.release()
	for _, o := range held {
		o.wantContent(t, "content")
	}
}

// TestKernelMarksGiveWay: events that wait get the descriptors of marks before any
// opener is answered for want of one.
func TestKernelMarksGiveWay(t *testing.T) {
	const most, maxHeld = 8, 4
	s := newStubborn(t, clean)
	var slow atomic.Bool
	fake := scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, _ scanner.Generation) scanner.Verdict {
		if slow.Load() {
			return s.Scan(ctx, f)
		}
		return clean()
	})
	with := withMemory(t) // ends last
	r := newRig(t, fake, config(layersOnly, func(p *tenant.Tenant) { p.Deadline = time.Hour }), with,
		func(o *Options) { o.Memory.MaxMarks, o.MaxHeld = most, maxHeld })
	files := numberedFiles(most)
	c := sharing(t, 1, files)[0]
	r.announced(t, c)
	r.wanted(t, numbered(c, most)...)
	if st := r.Marks(); st.Now != most || st.Leased != most {
		t.Fatalf("%+v, want all marks taken", st)
	}
	var fresh []string
	for i := range maxHeld + most/2 {
		fresh = append(fresh, c.Path(fmt.Sprint("new", i)))
	}
	if _, ok := begin(t, shell(t, `for f; do echo new >"$f"; done`, append([]string{"sh"}, fresh...)...)).result(t); !ok {
		t.Fatal("the files cannot be made")
	}
	slow.Store(true)
	var held []*opener
	for _, path := range fresh {
		held = append(held, open(t, path))
		s.began(t)
		eventually(t, "marks give way", func() bool {
			return r.marks.leased.Load() <= r.marks.allowance()
		})
	}
	if st := r.Marks(); st.Shed == 0 || st.Leased > most/2 {
		t.Errorf("%+v with %d events held", st, len(held))
	}
	s.release()
	for _, o := range held {
		o.wantContent(t, "new\n")
	}
	if n := r.Tenants()[0].Answers.Reasons[string(audit.ReasonOverload)]; n != 0 {
		t.Errorf("%d openers were answered for want of a descriptor", n)
	}
}

// TestKernelMarksGoWhenDescriptorsRunOut: whatever the shares are, no descriptor for
// an event means that marks have too many.
func TestKernelMarksGoWhenDescriptorsRunOut(t *testing.T) {
	const files = 8
	r := marksRig(t, 100, config(layersOnly))
	c := sharing(t, 1, numberedFiles(files))[0]
	r.announced(t, c)
	r.wanted(t, numbered(c, files)...)
	if st := r.Marks(); st.Leased != files {
		t.Fatalf("%+v, want all files marked", st)
	}
	guarded := r.container(t, announcement(c).ID)
	guarded.unopened(0, unix.EAGAIN) // somebody's write lease
	guarded.unopened(0, unix.EMFILE)
	eventually(t, "the marks go", func() bool { return r.Marks().Leased == 0 })
	if st := r.Marks(); st.Shed != files {
		t.Errorf("%+v", st)
	}
	open(t, numbered(c, files)...).result(t)
}
