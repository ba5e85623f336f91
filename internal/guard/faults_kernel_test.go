package guard

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

func clean() scanner.Verdict { return scanner.CleanVerdict("1") }

func malicious() scanner.Verdict { return scanner.MaliciousVerdict("Test.Malware", "1") }

// TestKernelDeadline: the opener is answered while the scanner hangs and ignores
// its context; what it says later changes nothing and gives everything back.
func TestKernelDeadline(t *testing.T) {
	s := newStubborn(t, malicious)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = tenant.Allow, 30*time.Millisecond }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	open(t, c.Path("bad")).wantContent(t, needle)
	if got := r.next(t); got.Reason != audit.ReasonTimeout || got.Decision != "allow" || got.PID <= 1 {
		t.Errorf("the record is %+v", got)
	}
	if n := r.held.n.Load(); n != 1 {
		t.Errorf("%d descriptors are held while the scan runs, want 1", n)
	}
	s.release()
	eventually(t, "the descriptor is released", func() bool { return r.held.n.Load() == 0 })
	if left := descriptorsBelow(t, c.Merged); len(left) != 0 {
		t.Errorf("descriptors are left: %q", left)
	}
	r.noRecord(t)
}

// TestKernelDeadlineQueued: the deadline answers events that no worker has seen.
func TestKernelDeadlineQueued(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = 30 * time.Millisecond }), func(o *Options) { o.Workers = 1 })
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	first := open(t, c.Path("good"))
	s.began(t)
	first.wantDenied(t)
	for range 3 {
		open(t, c.Path("good")).wantDenied(t)
	}
	for range 4 {
		if got := r.next(t); got.Reason != audit.ReasonTimeout || got.Decision != "deny" {
			t.Errorf("the record is %+v", got)
		}
	}
	// Only the one under way still has a descriptor.
	eventually(t, "queued descriptors are released", func() bool { return r.held.n.Load() == 1 })
	s.release()
	eventually(t, "the last descriptor is released", func() bool { return r.held.n.Load() == 0 })
	r.noRecord(t)
}

// TestKernelDeadlineAfterChange: the deadline comes while a file is scanned again
// because it had changed.
func TestKernelDeadlineAfterChange(t *testing.T) {
	var calls atomic.Int64
	s := newStubborn(t, func() scanner.Verdict { return scanner.ErrorVerdict(scanner.ErrRead) })
	again := make(chan struct{})
	r := newRig(t, scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, _ scanner.Generation) scanner.Verdict {
		if calls.Add(1) == 2 {
			close(again)
			return s.Scan(ctx, f)
		}
		return scanner.ErrorVerdict(scanner.ErrRead)
	}), config(func(p *tenant.Tenant) { p.Deadline = 100 * time.Millisecond }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	o := open(t, c.Path("good"))
	receive(t, "the second scan", again)
	o.wantDenied(t)
	if got := r.next(t); got.Reason != audit.ReasonTimeout || got.File.Size != int64(len("content")) {
		t.Errorf("the record is %+v", got)
	}
	s.release()
}

// TestKernelOverload fills one tenant's queue: its own next opener gets onTimeout
// at once, another tenant's is scanned.
func TestKernelOverload(t *testing.T) {
	for _, action := range []tenant.Action{tenant.Allow, tenant.Deny} {
		t.Run(string(action), func(t *testing.T) {
			s := newStubborn(t, clean)
			cfg := withTenant(config(), "flooded", "flood", func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = action, time.Hour })
			r := newRig(t, s, cfg, func(o *Options) { o.Workers, o.Queue = 1, 1 })
			flooded := kerneltest.NewContainer(t, samples(), "")
			neighbour := kerneltest.NewContainer(t, samples(), "")
			r.announced(t, flooded, inNamespace("flood"))
			r.announced(t, neighbour)
			scanned := open(t, flooded.Path("good"))
			s.began(t)
			queued := open(t, flooded.Path("good"))
			eventually(t, "the queue is full", func() bool { return r.Tenants()[0].Queued == 1 })
			if o := open(t, flooded.Path("bad")); action == tenant.Allow {
				o.wantContent(t, needle)
			} else {
				o.wantDenied(t)
			}
			if got := r.next(t); got.Reason != audit.ReasonOverload || got.Decision != string(action) || got.PID <= 1 {
				t.Errorf("the record is %+v", got)
			}
			other := open(t, neighbour.Path("good"))
			s.began(t) // not behind the flood
			s.release()
			for _, o := range []*opener{scanned, queued, other} {
				o.wantContent(t, "content")
			}
		})
	}
}

func inNamespace(namespace string) func(*announce.Container) {
	return func(a *announce.Container) { a.Namespace = namespace }
}

// TestKernelMaxHeld: beyond the bound on descriptors the policy answers at once.
func TestKernelMaxHeld(t *testing.T) {
	s := newStubborn(t, clean)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = tenant.Allow, time.Hour }),
		func(o *Options) { o.MaxHeld = 2 })
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	held := []*opener{open(t, c.Path("good")), open(t, c.Path("good"))}
	s.began(t)
	s.began(t)
	open(t, c.Path("bad")).wantContent(t, needle)
	if got := r.next(t); got.Reason != audit.ReasonOverload {
		t.Errorf("the record is %+v", got)
	}
	s.release()
	for _, o := range held {
		o.wantContent(t, "content")
	}
	eventually(t, "the descriptors are released", func() bool { return r.held.n.Load() == 0 })
	open(t, c.Path("good")).wantContent(t, "content")
	for range 3 {
		if got := r.next(t); got.Verdict != "clean" {
			t.Errorf("the record is %+v", got)
		}
	}
}

// TestKernelOpenerKilled: an opener that dies while it waits leaves a record and
// nothing else.
func TestKernelOpenerKilled(t *testing.T) {
	s := newStubborn(t, malicious)
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Deadline = time.Hour }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	o := open(t, c.Path("bad"))
	s.began(t)
	o.waits(t)
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := receive(t, "the opener's end", o.done); !errors.As(err, &exit) || exit.String() != "signal: killed" {
		t.Errorf("the opener ended with %v, want its death", err)
	}
	s.release()
	if got := r.next(t); got.Verdict != "malicious" || got.PID != o.cmd.Process.Pid {
		t.Errorf("the record is %+v", got)
	}
	eventually(t, "the descriptor is released", func() bool { return r.held.n.Load() == 0 })
	open(t, c.Path("bad")).wantDenied(t) // the reader is still there
}

// TestKernelOneAnswer lets the answers of a task come in the order in which the
// end of a scan and the deadline can race: what comes second changes nothing, not
// even what the next open of the same thread gets.
func TestKernelOneAnswer(t *testing.T) {
	r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.OnTimeout, p.Deadline = tenant.Allow, time.Hour }))
	o := kerneltest.NewOverlay(t, samples())
	c := &container{guard: r.Guard}
	c.pool.Store(r.pools["default"])
	leftBehind := make(chan int, 1)
	watch(t, r, o, func(ev *fanotify.Event) {
		k := newTask(c, c.pool.Load(), c.pool.Load().policy.Load(), ev)
		k.file.Op = scanner.OpExec
		k.perm = ev.Take()
		k.conclude(k.policy.judge(malicious()), account{result: scanner.Result{Verdict: malicious()}})
		st, _ := ev.Stat()
		leftBehind <- lateAnswers(k, *st)
		k.perm.Release()
	})
	open(t, o.Path("bad")).wantDenied(t)
	if n := receive(t, "the event", leftBehind); n != 0 {
		t.Errorf("%d times a lost answer let the thread's next open of the malicious file through unscanned", n)
	}
	if got := r.next(t); got.Decision != "deny" || got.Reason != audit.ReasonMalicious {
		t.Errorf("the record is %+v", got)
	}
	r.noRecord(t)
}

// lateAnswers concludes a task that is answered again and again, and returns how
// often an open of its thread would meanwhile have passed for the second half of
// an allowed exec.
func lateAnswers(k *task, st unix.Stat_t) (passed int) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range 200_000 {
			k.conclude(k.policy.timeout(), account{})
		}
	}()
	for {
		if k.c.pairs.take(k.tid, &st) {
			passed++
		}
		select {
		case <-over:
			return passed
		default:
		}
	}
}

// handlerFunc makes a handler of a function.
type handlerFunc func(*fanotify.Event)

func (f handlerFunc) HandleEvent(ev *fanotify.Event) { f(ev) }

// watch gives the events of an overlay to h.
func watch(t *testing.T, r *rig, o kerneltest.Overlay, h handlerFunc) {
	t.Helper()
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(group.Close)
	if err := r.readers.Add(group, h, func(int, error) {}); err != nil {
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
}

// TestKernelCheck asks for verdicts on descriptors, as `assay check` does.
func TestKernelCheck(t *testing.T) {
	r := newRig(t, newContains(), config(func(p *tenant.Tenant) { p.MaxSize = 100 }))
	for _, tc := range []struct {
		content  string
		decision string
		reason   audit.Reason
	}{
		{"fine", "allow", audit.ReasonClean},
		{needle, "deny", audit.ReasonMalicious},
		{fmt.Sprint(make([]int, 100)), "deny", audit.ReasonTooLarge},
	} {
		f := scannertest.FileOf(t, []byte(tc.content))
		v, err := r.Check(t.Context(), f.FD, f.Size, "", "file")
		if err != nil || v.Decision != tc.decision || v.Reason != tc.reason || v.Tenant != "default" || v.Size != f.Size {
			t.Errorf("%.10s: %+v, %v", tc.content, v, err)
		}
	}
	if _, err := r.Check(t.Context(), 0, 0, "nobody", ""); !errors.Is(err, ErrNoTenant) {
		t.Errorf("an unknown tenant: %v", err)
	}
}
