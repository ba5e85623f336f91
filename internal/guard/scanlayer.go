package guard

import (
	"context"
	"errors"
	"fmt"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/layer"
)

// A LayerWatcher follows the scan of a layer that somebody has asked for. Its
// methods are called one after another.
type LayerWatcher interface {
	ahead.Watcher
	// Finding is told of files that are not clean, before Did.
	Finding(f AheadFinding)
}

// ScanLayer scans the files of an unpacked layer for a tenant, "" for the tenant of
// the empty namespace, and keeps the verdicts for whoever rests on the layer.
func (g *Guard) ScanLayer(ctx context.Context, tenantName string, l layer.Directory, w LayerWatcher) error {
	t := g.pool(tenantName)
	switch {
	case t == nil:
		return fmt.Errorf("%w: %q", ErrNoTenant, tenantName)
	case g.memory == nil:
		return errors.New("this agent remembers nothing")
	}
	scope, label := scopeOfLayer(l.Layer)
	j := ahead.Job{
		Layer: ahead.Layer{Name: label, Dir: l.Path}, Tenant: t.name, Key: aheadKey{scope: scope},
	}
	return ahead.Run(ctx, watched{aheadScans{g}, w}, &j, w)
}

// watched passes what is found on to whoever asked.
type watched struct {
	aheadScans
	watcher LayerWatcher
}

// Open implements [ahead.Scans].
func (s watched) Open(j *ahead.Job) (ahead.Tree, error) {
	tree, err := s.aheadScans.Open(j)
	if t, ok := tree.(*layerTree); ok {
		t.report = s.watcher.Finding
	}
	return tree, err
}

// Ahead describes the scanning ahead of opens; nil without a memory.
func (g *Guard) Ahead() *ahead.Progress {
	if g.ahead == nil {
		return nil
	}
	p := g.ahead.Progress()
	return &p
}

// PauseAhead holds up the scanning ahead of opens, or lets it go on.
func (g *Guard) PauseAhead(paused bool) {
	if g.ahead != nil {
		g.ahead.Pause(paused)
	}
}

// Marks describes the kernel's marks on clean files.
func (g *Guard) Marks() MarkStats { return g.marks.stats() }

// LayersInUse returns the layers of the guarded containers, each once.
func (g *Guard) LayersInUse() []layer.Directory {
	seen := map[layer.Layer]bool{}
	var all []layer.Directory
	for _, c := range g.guarded() {
		l := c.lineage.Load()
		if l == nil || l.rootfs == nil {
			continue
		}
		for _, dir := range l.rootfs.Dirs() {
			if !seen[dir.Layer] {
				seen[dir.Layer] = true
				all = append(all, dir)
			}
		}
	}
	return all
}
