package guard

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// A task is one opener that waits for a scan. A worker, the deadline and the end
// of the container race to answer it; whoever answers also records. The
// descriptor is released by the worker, or by whoever ends the task while it is
// still queued.
type task struct {
	c      *container
	pool   *pool
	policy *policy // at the time of the event: the deadline and what it leads to
	perm   *fanotify.Permission
	file   scanner.File
	tid    int          // the opener's thread
	lane   verdict.Lane // the reader's
	state  fileState
	began  time.Time
	audit  bool // allowed before the scan

	armed     sync.Mutex // held until deadline and detach are set
	phase     atomic.Int32
	concluded atomic.Bool // recorded, for audit mode
	deadline  *time.Timer
	expire    atomic.Pointer[context.CancelCauseFunc] // ends the scan at the deadline
	detach    func() bool                             // from the container's end

	// waits says that the task is in its tenant's list of those who wait, between
	// before and after; guarded by the list's lock.
	waits         bool
	before, after *task
	ticket        atomic.Pointer[verdict.Ticket] // its part in a scan, once it has one

	describeOnce sync.Once
	subject      subject
	origin       atomic.Pointer[origin] // of the file, once a worker has asked for it
}

// An origin is what records tell about a file.
type origin struct {
	identity string
	layer    string // digest
	pristine bool
}

// An account is what records tell about how an answer came to be.
type account struct {
	result scanner.Result
	detail string
	source string // "" for scan or policy, as the result says
}

// The phases of a task. Only the one who moves it out of queued touches its
// descriptor afterwards.
const (
	queued int32 = iota
	running
	abandoned
)

func newTask(c *container, t *pool, p *policy, ev *fanotify.Event) *task {
	st, _ := ev.Stat()
	k := &task{
		c: c, pool: t, policy: p, tid: ev.TID(), lane: verdict.Lane(ev.Reader()), state: stateOf(st), began: time.Now(),
		audit: p.Mode == tenant.Audit,
	}
	c.describe(&k.file, t, ev)
	return k
}

// start takes the event and queues the task. In audit mode the opener is let go
// first. It runs on the reader thread.
func (k *task) start(ev *fanotify.Event) {
	if k.audit {
		k.expectOpen(fanotify.Allow)
		k.c.guard.records.Announce()
		ev.Answer(fanotify.Allow)
	}
	k.perm = ev.Take()
	if !k.audit {
		k.pool.waiting.add(k)
	}
	k.arm()
	switch {
	case k.pool.crew.exhausted.Load():
		k.abandon(k.policy.overload(), "no scan of this tenant comes back: all its workers are stuck")
	case !k.pool.submit(job{k.run, k.giveUp}):
		k.abandon(k.policy.overload(), "the tenant's queue is full")
	}
}

// arm sets what ends the task if no worker does.
func (k *task) arm() {
	k.armed.Lock()
	defer k.armed.Unlock()
	k.deadline = time.AfterFunc(k.policy.Deadline, func() {
		k.abandon(k.policy.timeout(), "no verdict within "+k.policy.Deadline.String())
		if expire := k.expire.Load(); expire != nil {
			(*expire)(context.DeadlineExceeded)
		}
	})
	k.detach = context.AfterFunc(k.c.ctx, func() {
		k.abandon(k.policy.stopping(), errStopping.Error())
	})
}

// run is the worker's part.
func (k *task) run() {
	if !k.phase.CompareAndSwap(queued, running) {
		return // answered and released while it was queued
	}
	k.describe() // before anything can release the descriptor; see abandon
	p := k.c.usePolicy()
	if p == nil {
		k.conclude(k.policy.stopping(), account{detail: errStopping.Error()})
		k.release()
		return
	}
	inquire(k, p)
}

// abandon answers without a verdict. Queued, the task ends here; running, the
// worker goes on to its end with an opener that no longer waits.
func (k *task) abandon(o outcome, detail string) {
	mine := k.phase.CompareAndSwap(queued, abandoned)
	if !mine && k.phase.Load() == abandoned {
		return
	}
	// The descriptor is open here: either nobody else can release it any more, or
	// the worker waits in describe until this one is through.
	k.describe()
	k.conclude(o, account{detail: detail})
	if mine {
		k.release()
	}
}

// conclude answers and records, unless somebody has.
func (k *task) conclude(o outcome, a account) {
	if k.audit {
		if !k.concluded.CompareAndSwap(false, true) {
			return
		}
		if o.reason != audit.ReasonClean {
			o = outcome{fanotify.Allow, audit.ReasonAuditMode}
		}
		k.told(o, a)
		return
	}
	before := func() {
		k.expectOpen(o.decision)
		k.c.guard.records.Announce()
	}
	if k.perm.AnswerAfter(before, o.decision) {
		k.pool.waiting.remove(k)
		k.told(o, a)
	}
}

// expectOpen announces the open event that follows an allowed exec event. It
// must stand before the answer: the opener does not wait for us afterwards.
func (k *task) expectOpen(d fanotify.Decision) {
	if d == fanotify.Allow && k.file.Op == scanner.OpExec && k.policy.paired() {
		k.c.pairs.put(k.tid, k.state)
	}
}

// told counts and records an event that is answered. It was announced before that: a
// record that is lost with this process in between is missed by the next one.
func (k *task) told(o outcome, a account) {
	took := time.Since(k.began)
	k.c.count(k.pool, o)
	k.c.guard.records.AppendAnnounced(k.record(o, a, took))
}

// describe looks up who opens what, once, while the opener still waits and the
// descriptor is open. It asks procfs alone, never the file's filesystem, which
// may not answer: the deadline waits for it.
func (k *task) describe() {
	k.describeOnce.Do(func() {
		k.subject = subjectOf(k.file.FD, k.tid)
		k.file.Path, k.file.PID = k.subject.path, k.subject.pid
	})
}

// release ends the task.
func (k *task) release() {
	k.armed.Lock() // abandon can come before arm is through
	defer k.armed.Unlock()
	k.deadline.Stop()
	k.detach()
	k.perm.Release()
	k.pool.waiting.remove(k) // nothing to do, unless nobody has answered
	k.c.guard.unhold(k.pool)
}

// giveUp is called when the task's scan does not come back: whoever waits for it may
// scan for himself. The opener has had his answer at the deadline.
func (k *task) giveUp() {
	if t := k.ticket.Load(); t != nil {
		t.HandOver()
	}
}
