package guard

import (
	"context"
	"time"

	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// An inquiry is a task in the hands of the workers: it asks the memory, waits for
// somebody else's scan of the same file, or scans. Its steps may run on different
// goroutines, one after another; each either passes it on or ends it.
type inquiry struct {
	*task
	policy *policy // held for use
	ctx    context.Context
	cancel context.CancelCauseFunc
	proof  proof
	holds  *lineage // kept in use for what is to be remembered; nil if nothing is
	ticket *verdict.Ticket
}

// inquire begins an inquiry about a task that is running.
func inquire(k *task, p *policy) {
	q := &inquiry{task: k, policy: p}
	// The task's timer ends the scan: a second one for each scan wakes threads for nothing.
	q.ctx, q.cancel = context.WithCancelCause(k.c.ctx)
	k.expire.Store(&q.cancel)
	if time.Since(k.began) >= k.policy.Deadline { // it has come and gone
		q.cancel(context.DeadlineExceeded)
	}
	l := k.c.lineage.Load()
	if l == nil {
		l = new(lineage) // nothing is remembered, and the record still names the file
	}
	q.proof = l.begin(k.file.FD, k.subject.path)
	q.note()
	if !q.proof.holds || p.plan == nil || !l.hold() {
		q.alone()
		return
	}
	q.holds = l
	q.ticket = l.memory.Cache.Join(q.proof.scope, q.proof.key(), p.class)
	k.ticket.Store(q.ticket)
	if q.ticket.Owner() {
		q.own()
		return
	}
	q.proof.end() // the owner has one of its own
	go q.wait()   // and the worker is free
}

// end gives back what the inquiry holds, its task included.
func (q *inquiry) end() {
	q.proof.end()
	if q.holds != nil {
		q.holds.release()
	}
	q.cancel(nil)
	q.policy.unuse()
	q.release()
}

// own scans for all who wait for the same file.
func (q *inquiry) own() {
	defer q.end()
	defer q.ticket.HandOver() // after a panic, so that nobody waits for ever; else it has ended
	view := q.policy.view()
	defer q.policy.views.Put(view)
	view.Look(q.lane, q.proof.scope, q.proof.key())
	f := q.file // the scan notes how the size changes, while the deadline may record
	if v, settled := view.Settle(&f); settled && view.Known() && !q.policy.tooBig(f.Size) {
		r := scanner.Result{Verdict: v, Reports: view.Reports()}
		q.ticket.Complete(r)
		q.conclude(q.policy.judge(v), account{result: r, source: sourceCache})
		return
	}
	r := q.policy.scan(q.ctx, &f, view.Evaluate)
	q.pool.scans.Add(uint64(view.Scanned(r))) //nolint:gosec // a handful
	// The opener need not wait for what is remembered. What it does with the file from
	// here on, the proof notices.
	q.conclude(q.policy.judge(r.Verdict), account{result: r})
	q.share(view, &f, r)
}

// share tells the memory and all who wait what came of a scan, as far as it holds
// for them.
func (q *inquiry) share(view *verdict.View, f *scanner.File, r scanner.Result) {
	switch {
	case r.Verdict.Outcome == scanner.Error && q.ctx.Err() != nil:
		q.ticket.HandOver() // this opener's time was over; the next one has its own
	case f.Size == q.file.Size && q.proof.complete(q.subject.path):
		view.Keep(q.proof.scope, q.proof.key(), f.Size, r)
		q.ticket.Complete(r)
	default:
		q.ticket.Disperse()
	}
}

// alone scans for this opener and remembers nothing.
func (q *inquiry) alone() {
	defer q.end()
	f := q.file
	r := q.policy.scan(q.ctx, &f, q.policy.evaluate)
	q.pool.scans.Add(uint64(len(r.Reports)))
	q.conclude(q.policy.judge(r.Verdict), account{result: r})
}

// wait waits for the owner's scan.
func (q *inquiry) wait() {
	r, how := q.ticket.Wait(q.ctx)
	switch how {
	case verdict.Shared:
		defer q.end()
		q.conclude(q.policy.judge(r.Verdict), account{result: r, source: sourceCoalesced})
	case verdict.Owner:
		q.again(q.renew)
	case verdict.Alone:
		q.again(q.alone)
	case verdict.Left:
		defer q.end()
		r := scanner.Result{Verdict: scanner.ErrorVerdict(q.ctx.Err())}
		explain(q.ctx, &r)
		q.conclude(q.policy.judge(r.Verdict), account{result: r})
	}
}

// renew takes over from an owner that gave up, with a proof that begins now.
func (q *inquiry) renew() {
	before := q.proof
	q.proof = before.lineage.begin(q.file.FD, q.subject.path)
	if q.proof.id == before.id && q.proof.scope == before.scope && q.proof.holds {
		q.own()
		return
	}
	q.ticket.Disperse()
	q.alone()
}

// again hands the inquiry back to the workers.
func (q *inquiry) again(step func()) {
	if q.pool.submit(job{step, q.giveUp}) {
		return
	}
	defer q.end()
	q.ticket.HandOver() // no effect unless it is ours
	q.conclude(q.policy.overload(), account{detail: "the tenant's queue is full"})
}

// note keeps what was found out about the file for the record.
func (q *inquiry) note() {
	if q.proof.id.IsZero() {
		return
	}
	o := &origin{identity: q.proof.id.String(), pristine: q.proof.pristine()}
	if o.pristine {
		o.layer = q.proof.origin.Layer.Digest
	}
	q.origin.Store(o)
}
