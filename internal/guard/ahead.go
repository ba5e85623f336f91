package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// aheadDeadline bounds the scan of one file for which nobody waits.
const aheadDeadline = time.Minute

// An aheadKey tells layers to be scanned apart: a scan is done for the layer under a
// policy, and again for a generation.
type aheadKey struct {
	scope      verdict.Scope
	class      verdict.Class
	generation string
	again      bool // only what was in use: not all of the layer
}

// maxEntries bounds what is listed of one layer.
const maxEntries = 2_000_000

// errNotLocal says that a layer's verdicts could not be kept.
var errNotLocal = errors.New("others than this kernel can change the layer's files: they are scanned when they are opened")

// errLayerGone says that another directory is where the layer was.
var errLayerGone = errors.New("the layer's directory is gone")

// anticipate has the layers of a container that starts scanned in the background.
func (g *Guard) anticipate(c *container) {
	if p := c.pool.Load().policy.Load(); g.ahead != nil && p.ScanAhead == tenant.AheadLayers {
		g.enqueue(c, p, false)
	}
}

// outdated has what a tenant's containers use scanned again, after a scanner's
// knowledge has changed.
func (g *Guard) outdated(t *pool) {
	p := t.policy.Load()
	if g.ahead == nil || p.OnGeneration != tenant.GenerationRescan {
		return
	}
	for _, c := range g.guarded() {
		if c.pool.Load() == t {
			g.enqueue(c, p, true)
		}
	}
}

// enqueue hands a container's layers to the runner.
func (g *Guard) enqueue(c *container, p *policy, again bool) {
	l := c.lineage.Load()
	if l == nil || l.rootfs == nil {
		return
	}
	for i, dir := range l.rootfs.Dirs() {
		if !l.rootfs.IsLocal(i) {
			continue
		}
		g.ahead.Add(ahead.Job{
			Layer:  ahead.Layer{Name: l.labels[i], Dir: dir.Path},
			Tenant: c.pool.Load().name, Again: again,
			Key: aheadKey{l.layers[i], p.class, p.generations(), again},
		})
	}
}

// generations names what the policy's scanners know now.
func (p *policy) generations() string {
	var text strings.Builder
	for s := range p.scanners() {
		fmt.Fprintf(&text, "%s=%q ", s.Name, s.Generation())
	}
	return text.String()
}

// aheadScans is the guard as the runner sees it.
type aheadScans struct{ *Guard }

// A layerTree is a layer's directory, open, whose verdicts are wanted.
type layerTree struct {
	tree   *layer.Tree
	guard  *Guard
	scope  verdict.Scope
	digest string // of the layer; "" if no runtime's storage names it
	// report is told of whatever is not clean; nil if nobody asked.
	report func(AheadFinding)
}

// An AheadFinding is a file of a layer that is not known to be clean.
type AheadFinding struct {
	Layer, Path string
	Size        int64
	Result      scanner.Result
}

// Open implements [ahead.Scans].
func (a aheadScans) Open(j *ahead.Job) (ahead.Tree, error) {
	key, ok := j.Key.(aheadKey)
	if !ok {
		return nil, errLayerGone // a defect: all jobs are made here
	}
	tree, err := a.memory.Host.OpenLayer(j.Dir)
	if err != nil {
		return nil, err
	}
	// The same directory as before, by whichever name its layer goes.
	found, _ := tree.Layer(context.Background()) // nobody is asked for the digest
	named := layer.Layer{Digest: j.Name, Dir: found.Dir}
	if scope, _ := scopeOfLayer(named); scope != key.scope {
		named.Digest = ""
		if scope, _ = scopeOfLayer(found.Layer); scope != key.scope {
			a.memory.Cache.Drop(key.scope)
			return nil, errors.Join(errLayerGone, tree.Close())
		}
	}
	if !tree.IsLocal() {
		return nil, errors.Join(errNotLocal, tree.Close())
	}
	a.memory.Cache.Acquire(key.scope, j.Name)
	return &layerTree{tree: tree, guard: a.Guard, scope: key.scope, digest: named.Digest}, nil
}

// Close implements [ahead.Tree].
func (t *layerTree) Close() error {
	t.guard.memory.Cache.Release(t.scope)
	return t.tree.Close()
}

// Files implements [ahead.Tree].
func (t *layerTree) Files(ctx context.Context) ([]ahead.File, error) {
	listing, err := t.tree.List(ctx, maxEntries)
	if err != nil {
		return nil, err
	}
	files := make([]ahead.File, len(listing.Files))
	for i, f := range listing.Files {
		files[i] = ahead.File{Path: f.Path, Size: f.Size, Ref: f}
	}
	return files, nil
}

// Busy implements [ahead.Scans].
func (a aheadScans) Busy(j *ahead.Job) bool {
	t := a.pool(j.Tenant)
	return t != nil && (len(t.queue) > 0 || t.crew.workers.Load() > 0)
}

// Scan implements [ahead.Scans].
func (a aheadScans) Scan(ctx context.Context, j *ahead.Job, tree ahead.Tree, f *ahead.File) ahead.Result {
	t, pool := tree.(*layerTree), a.pool(j.Tenant) //nolint:errcheck,forcetypeassert // from Open
	if pool == nil {
		return ahead.Skipped
	}
	p := pool.usePolicy()
	if p == nil {
		return ahead.Skipped
	}
	defer p.unuse()
	s := scanner.File{FD: -1, Size: f.Size, Tenant: j.Tenant, Path: f.Path}
	if v, known := scanner.EvaluateInstant(p.stages, &s); known && v.Outcome == scanner.Clean {
		return ahead.Skipped
	}
	source, err := t.tree.Open(f.Ref.(layer.File)) //nolint:errcheck,forcetypeassert // from Files
	switch {
	case errors.Is(err, layer.ErrStale), errors.Is(err, layer.ErrNoContent):
		return ahead.Skipped
	case err != nil:
		return t.tell(&s, scanner.Result{Verdict: scanner.ErrorVerdict(err)}, ahead.Failed)
	}
	defer source.Close()
	s.FD = int(source.Fd())
	key := verdict.FileKey(source.Identity().Bytes())
	if j.Again && !a.memory.Cache.Has(&t.scope, &key) {
		return ahead.Skipped
	}
	ctx, cancel := context.WithTimeout(ctx, max(aheadDeadline, p.Deadline))
	defer cancel()
	return t.scan(ctx, pool, p, &s, source)
}

// inBackground keeps scans ahead apart from those for openers: an opener must not
// wait for one that comes last at the disk.
const inBackground verdict.Class = 1 << 63

// scan scans an open file of the layer, unless its verdicts are known. An opener who
// wants the file meanwhile has it scanned for himself.
func (t *layerTree) scan(ctx context.Context, pool *pool, p *policy, f *scanner.File, source *layer.Source) ahead.Result {
	key := verdict.FileKey(source.Identity().Bytes())
	ticket := t.guard.memory.Cache.Join(t.scope, key, p.class|inBackground)
	switch r, how := ticket.Wait(ctx); how {
	case verdict.Owner:
	case verdict.Shared: // somebody else scans the layer at the same time
		return t.tell(f, r, resultOf(r.Verdict.Outcome))
	case verdict.Alone:
		r := p.scan(ctx, f, p.evaluate)
		return t.tell(f, r, resultOf(r.Verdict.Outcome))
	case verdict.Left:
		return ahead.Failed
	}
	defer ticket.HandOver() // unless it has ended by then
	view := p.view()
	defer p.views.Put(view)
	view.Peek(t.scope, key)
	if v, settled := view.Settle(f); settled {
		r := scanner.Result{Verdict: v, Reports: view.Reports()}
		ticket.Complete(r)
		return t.tell(f, r, ahead.Known)
	}
	size, still := f.Size, t.isStill(f.FD)
	r := p.scan(ctx, f, view.Evaluate)
	pool.scans.Add(uint64(view.Scanned(r))) //nolint:gosec // a handful
	if ctx.Err() != nil {
		return ahead.Failed
	}
	if same, err := source.Unchanged(); err != nil || !same || f.Size != size || !still || !t.isStill(f.FD) {
		ticket.Disperse() // an answer to whoever asked, and not to be kept
	} else {
		view.Keep(t.scope, key, f.Size, r)
		ticket.Complete(r)
	}
	return t.tell(f, r, resultOf(r.Verdict.Outcome))
}

// isStill reports whether nobody writes to a layer's file, as an unpacker would, nor
// did a moment ago.
func (t *layerTree) isStill(fd int) bool {
	if h := t.guard.memory.Leases; h != nil {
		if busy, err := h.Writers(fd); err != nil || busy {
			return false
		}
	}
	return isSettled(fd)
}

func resultOf(o scanner.Outcome) ahead.Result {
	switch o {
	case scanner.Clean:
		return ahead.Clean
	case scanner.Malicious:
		return ahead.Malicious
	case scanner.Unscannable:
		return ahead.Unscannable
	case scanner.Error:
	}
	return ahead.Failed
}

// tell says what was found, to whoever asked for it or in the records.
func (t *layerTree) tell(f *scanner.File, r scanner.Result, result ahead.Result) ahead.Result {
	if r.Verdict.Outcome == scanner.Clean {
		return result
	}
	if t.report != nil {
		t.report(AheadFinding{Path: f.Path, Size: f.Size, Result: r})
	}
	if result != ahead.Malicious {
		return result
	}
	t.guard.log.Warn("malware in an image layer, before anybody has opened it", "layer", t.digest, "path", f.Path, "signature", r.Verdict.Signature)
	t.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: f.Tenant, Op: audit.OpScan, Path: f.Path,
		File: audit.File{Layer: t.digest, Size: f.Size, Pristine: true}, Verdict: r.Verdict.Outcome.String(), Mark: r.Verdict.Mark,
		Source: sourceScan, Reason: audit.ReasonMalicious, Scanners: ScannerRecords(r.Reports),
	})
	return result
}
