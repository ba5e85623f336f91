package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// An Explanation is what is known of one file of a container.
type Explanation struct {
	Image    string
	Policy   tenant.Tenant
	Mode     uint32 // type bits and permissions of the file
	Size     int64
	Identity layer.Identity
	Mount    Mount
	Origin   layer.Attribution
	Dir      string // of the layer, on the host
	Why      error  // the origin could not be found out
	Scanners []ExplainedScanner
	Marked   bool
	Leased   bool
	Since    time.Time // of the mark
	Open     Prediction
	Exec     Prediction
}

// An ExplainedScanner is one scanner of the policy and what it is known to have said.
type ExplainedScanner struct {
	Name       string
	Stage      int // from 1
	Generation scanner.Generation
	Known      []verdict.Known // of all its generations and configurations
	Current    []bool          // for each of Known: it counts
	Kind       verdict.Kind    // of the scope that they are kept for
}

// A Prediction is what the next event will be answered if nothing changes.
type Prediction struct {
	Scan     bool // the scanners decide
	Decision fanotify.Decision
	Source   string
	Reason   audit.Reason
	Scanners []string // to be asked
}

// sourceInstant is the source of a prediction that a scanner makes from metadata.
const sourceInstant = "instant"

// Errors of Explain.
var (
	ErrNoContainer = errors.New("no such container is guarded")
	ErrNoFile      = errors.New("the container has no such file")
)

// Explain tells what is known of the file at path, as the container with this id
// sees it. The path is only looked up (O_PATH), which raises no event; a volume on a
// server that hangs makes it hang.
func (g *Guard) Explain(_ context.Context, id, path string) (Explanation, error) {
	g.mu.Lock()
	c := g.containers[id]
	g.mu.Unlock()
	if c == nil {
		return Explanation{}, fmt.Errorf("%w: %q", ErrNoContainer, id)
	}
	root, err := c.rootNow()
	if err != nil {
		return Explanation{}, fmt.Errorf("%w: %w", ErrNoContainer, err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, path, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return Explanation{}, fmt.Errorf("%w: %w", ErrNoFile, err)
	}
	defer unix.Close(fd)
	return c.explain(fd)
}

// rootNow opens the container's root directory, before or after its pivot.
func (c *container) rootNow() (int, error) {
	fd, err := c.proc.root("/")
	if err != nil {
		return -1, err
	}
	if id, err := mountID(fd); err == nil && id == c.root {
		return fd, nil
	}
	_ = unix.Close(fd)
	return c.proc.root(c.info.Rootfs)
}

func (c *container) explain(fd int) (Explanation, error) {
	p := c.pool.Load().policy.Load()
	e := Explanation{Image: c.info.Image, Policy: p.Tenant}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return e, fmt.Errorf("%w: %w", ErrNoFile, err)
	}
	e.Mode, e.Size = st.Mode, st.Size
	e.Mount = c.mountOf(fd)
	scope := c.trace(&e, fd)
	if l := c.lineage.Load(); l != nil && p.plan != nil && !e.Identity.IsZero() {
		e.Scanners = c.known(p, scope, e.Identity)
		if scope.Kind == verdict.Container && !l.steady() {
			scope = verdict.Scope{} // an identity alone proves nothing
		}
	}
	e.Since, e.Leased, e.Marked = c.guard.marks.find(c, e.Identity)
	f := scanner.File{FD: fd, Size: e.Size, Tenant: c.pool.Load().name, Container: c.info.ID}
	e.Open, e.Exec = p.predict(&e, &f, scope, false), p.predict(&e, &f, scope, true)
	return e, nil
}

// mountOf returns the container's mount that the file is on. Its mark is by
// superblock or mount, so a file on a mount that was made later has none of its own.
func (c *container) mountOf(fd int) Mount {
	id, err := mountID(fd)
	if err != nil {
		return Mount{Kind: MarkNone, Why: err.Error()}
	}
	mounts := c.marked()
	if i := slices.IndexFunc(mounts, func(m Mount) bool { return m.id == id }); i >= 0 {
		return mounts[i]
	}
	return Mount{Kind: MarkNone, Why: "the mount was made after the container had started"}
}

// trace finds out where the file comes from, and for whom verdicts on it hold.
func (c *container) trace(e *Explanation, fd int) verdict.Scope {
	l := c.lineage.Load()
	if l == nil {
		e.Identity, e.Why = layer.Identify(fd)
		return verdict.Scope{}
	}
	var onRootfs bool
	if e.Identity, onRootfs, e.Why = l.identify(fd); e.Why != nil {
		return verdict.Scope{}
	}
	if !onRootfs {
		e.Origin.Reason = layer.OtherMount
		return l.elsewhere
	}
	e.Origin, e.Why = l.rootfs.Attribute(fd, e.Identity, hintOf(fd))
	if e.Origin.Reason != layer.Pristine {
		return l.own
	}
	e.Dir = l.rootfs.Dirs()[e.Origin.Depth].Path
	return l.layers[e.Origin.Depth]
}

// known lists what the policy's scanners are known to have said.
func (c *container) known(p *policy, scope verdict.Scope, id layer.Identity) []ExplainedScanner {
	all := c.guard.memory.Cache.Explain(scope, verdict.FileKey(id.Bytes()))
	var list []ExplainedScanner
	for stage := range p.stages {
		for _, named := range p.stages[stage].Scanners {
			s := ExplainedScanner{Name: named.Name, Stage: stage + 1, Generation: named.Generation(), Kind: scope.Kind}
			for _, k := range all {
				if k.Scanner.Name() == named.Name {
					s.Known = append(s.Known, k)
					s.Current = append(s.Current, k.Scanner == p.plan.Scanner(named.Name) && k.Verdict.Generation.Matches(s.Generation))
				}
			}
			list = append(list, s)
		}
	}
	return list
}

// predict says what the next event for the file will be answered.
func (p *policy) predict(e *Explanation, f *scanner.File, scope verdict.Scope, exec bool) Prediction {
	at := func(o outcome, source string) Prediction {
		if p.Mode == tenant.Audit && o.reason != audit.ReasonClean {
			o = outcome{fanotify.Allow, audit.ReasonAuditMode}
		}
		return Prediction{Decision: o.decision, Reason: o.reason, Source: source}
	}
	switch {
	case !p.wants(exec):
		return at(outcome{fanotify.Allow, audit.ReasonNotSelected}, sourcePolicy)
	case e.Mode&unix.S_IFMT != unix.S_IFREG:
		return at(outcome{fanotify.Allow, audit.ReasonNotRegular}, sourcePolicy)
	case e.Marked:
		return at(outcome{fanotify.Allow, audit.ReasonClean}, sourceKernel)
	case p.tooBig(e.Size):
		return at(p.tooLarge(), sourcePolicy)
	}
	if v, known := scanner.EvaluateInstant(p.stages, f); known && v.Outcome == scanner.Clean {
		return at(p.judge(v), sourceInstant)
	}
	missing := p.names()
	if p.plan != nil {
		view := p.view()
		defer p.views.Put(view)
		view.Peek(scope, verdict.FileKey(e.Identity.Bytes()))
		if v, settled := view.Settle(f); settled {
			return at(p.judge(v), sourceCache)
		}
		missing = view.Unknown()
	}
	if p.Mode == tenant.Audit { // allowed first, scanned afterwards
		return Prediction{Decision: fanotify.Allow, Source: sourcePolicy, Reason: audit.ReasonAuditMode, Scanners: missing}
	}
	return Prediction{Scan: true, Scanners: missing}
}

// WhyUnmarked says why the kernel asks about the file, as far as it can be told.
func (e *Explanation) WhyUnmarked() string {
	switch {
	case e.Mode&unix.S_IFMT != unix.S_IFREG:
		return "not a regular file"
	case e.Policy.KernelMarks == tenant.MarkOff:
		return "kernelMarks is off"
	case e.Policy.KernelMarks == tenant.MarkLayers && e.Origin.Reason != layer.Pristine:
		return "kernelMarks is layers, and this is no unchanged file of a layer"
	case e.Open.Source == sourceInstant:
		return "its scanners know it to be harmless from its size, which costs as little"
	case e.Open.Source != sourceCache || e.Open.Decision != fanotify.Allow:
		return "not known to be clean"
	}
	return "not opened again since its verdict was known, or no room, or a writer (assay status counts why)"
}

// names returns the names of the policy's scanners.
func (p *policy) names() []string {
	var names []string
	for s := range p.scanners() {
		names = append(names, s.Name)
	}
	return names
}
