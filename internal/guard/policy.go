package guard

import (
	"context"
	"errors"
	"iter"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// errStopping is the cause with which the scans of a container end when it is
// released.
var errStopping = errors.New("the container is being released")

// errDeadline says that a scan ended because the event's deadline came.
var errDeadline = errors.New("no verdict within the deadline")

// A policy is one tenant's configuration with its scanners, in force until a
// reload replaces it.
type policy struct {
	tenant.Tenant
	stages []scanner.Stage
	// instant says that at least one scanner may answer on the reader thread.
	instant bool
	// plan is the stages as the memory sees them, nil without one; class keeps the
	// scans under this policy apart from others'.
	plan  *verdict.Plan
	class verdict.Class
	views sync.Pool // of *verdict.View

	// inUse is held for reading while a scan runs under this policy, so that a
	// reload can wait until the scanners it replaces are idle.
	inUse   sync.RWMutex
	retired bool // guarded by inUse
}

// scanners are those of all stages, in order.
func (p *policy) scanners() iter.Seq[scanner.Named] {
	return func(yield func(scanner.Named) bool) {
		for _, stage := range p.stages {
			for _, s := range stage.Scanners {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// An outcome is what a policy makes of an event.
type outcome struct {
	decision fanotify.Decision
	reason   audit.Reason
}

// judge applies the policy to what its scanners said. In audit mode the outcome
// is what enforce mode would answer.
func (p *policy) judge(v scanner.Verdict) outcome {
	switch v.Outcome {
	case scanner.Clean:
		return outcome{fanotify.Allow, audit.ReasonClean}
	case scanner.Malicious:
		return outcome{fanotify.Deny, audit.ReasonMalicious}
	case scanner.Unscannable:
		if v.Reason == scanner.ReasonTooLarge {
			return p.tooLarge()
		}
		return outcome{action(p.OnUnscannable), audit.ReasonUnscannable}
	case scanner.Error:
	}
	switch {
	case errors.Is(v.Err, errStopping):
		return p.stopping()
	case errors.Is(v.Err, errDeadline):
		return p.timeout()
	}
	return outcome{action(p.OnError), audit.ReasonError}
}

func (p *policy) timeout() outcome {
	return outcome{action(p.OnTimeout), audit.ReasonTimeout}
}

// overload is a timeout known in advance: the event cannot be scanned in time.
func (p *policy) overload() outcome {
	return outcome{action(p.OnTimeout), audit.ReasonOverload}
}

func (p *policy) stopping() outcome {
	return outcome{action(p.OnError), audit.ReasonStopping}
}

func (p *policy) tooLarge() outcome {
	return outcome{action(p.OnTooLarge), audit.ReasonTooLarge}
}

// wants reports whether the tenant asked for this kind of event.
func (p *policy) wants(exec bool) bool {
	if exec {
		return p.OnExec
	}
	return p.OnOpen
}

// paired reports whether an exec raises two events that are both wanted.
func (p *policy) paired() bool { return p.OnOpen && p.OnExec }

// ops is what a mark must ask the kernel for.
func (p *policy) ops() fanotify.Ops {
	var ops fanotify.Ops
	if p.OnOpen {
		ops |= fanotify.OpOpen
	}
	if p.OnExec {
		ops |= fanotify.OpExec
	}
	return ops
}

// tooBig reports whether the tenant's own limit forbids to scan size bytes.
func (p *policy) tooBig(size int64) bool { return p.MaxSize > 0 && size > p.MaxSize }

// use holds the policy for one scan, or reports that it was retired.
//
// It does not wait for the reload that retires it, which may wait for a scan that
// never ends: by then another policy is in force.
func (p *policy) use() bool {
	if !p.inUse.TryRLock() {
		return false
	}
	if p.retired {
		p.inUse.RUnlock()
		return false
	}
	return true
}

func (p *policy) unuse() { p.inUse.RUnlock() }

// retire waits until no scan uses the policy and lets none begin.
func (p *policy) retire() {
	p.inUse.Lock()
	p.retired = true
	p.inUse.Unlock()
}

// maxScans is how often a file is scanned that keeps changing under the scan,
// such as a log that is written while somebody opens it to read.
const maxScans = 3

// An evaluation runs scanners on a file.
type evaluation func(context.Context, *scanner.File) scanner.Result

// evaluate runs all of the policy's scanners.
func (p *policy) evaluate(ctx context.Context, f *scanner.File) scanner.Result {
	return scanner.Evaluate(ctx, p.stages, f)
}

// scan runs scanners on f.
func (p *policy) scan(ctx context.Context, f *scanner.File, run evaluation) scanner.Result {
	r := p.scanOnce(ctx, f, run)
	for range maxScans - 1 {
		if !errors.Is(r.Verdict.Err, scanner.ErrRead) || ctx.Err() != nil {
			break
		}
		var st unix.Stat_t
		if err := unix.Fstat(f.FD, &st); err != nil {
			break
		}
		f.Size = st.Size
		r = p.scanOnce(ctx, f, run)
	}
	return r
}

func (p *policy) scanOnce(ctx context.Context, f *scanner.File, run evaluation) scanner.Result {
	if p.tooBig(f.Size) {
		return scanner.Result{Verdict: scanner.UnscannableVerdict(scanner.ReasonTooLarge, "")}
	}
	r := run(ctx, f)
	explain(ctx, &r)
	return r
}

// explain adds to an error why ctx ended, which decides what is answered: the
// scanners saw ctx.Err(), if anything. A time limit of a scanner's own is that
// scanner's failure.
func explain(ctx context.Context, r *scanner.Result) {
	if r.Verdict.Outcome != scanner.Error {
		return
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, context.DeadlineExceeded):
		r.Verdict.Err = errors.Join(errDeadline, r.Verdict.Err)
	case cause != nil:
		r.Verdict.Err = errors.Join(cause, r.Verdict.Err)
	}
}

// view returns a view of the plan, to be put back into views.
func (p *policy) view() *verdict.View {
	if v, ok := p.views.Get().(*verdict.View); ok {
		return v
	}
	return p.plan.NewView()
}

func action(a tenant.Action) fanotify.Decision {
	if a == tenant.Allow {
		return fanotify.Allow
	}
	return fanotify.Deny
}
