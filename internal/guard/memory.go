package guard

import (
	"context"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/verdict"
)

// A Memory is what a Guard remembers verdicts with. All of it stays the caller's.
type Memory struct {
	Cache     *verdict.Cache
	Leases    *lease.Holder // tells who writes; nil: only layers' verdicts are kept, and no marks placed
	Host      *layer.Host   // where layers are
	Clock     *layer.Clock  // tells that times can be forged
	Resolvers []layer.Resolver
	// Containerd is asked about the layers of containerd's containers, and of no others;
	// nil: nobody is.
	Containerd *layer.Containerd
	// MaxMarks bounds the kernel marks of all tenants: each is an open descriptor. Up to
	// half as many (16 at least) wait to be placed, each with a descriptor as well.
	MaxMarks int
}

// findLayers bounds the questions to the runtimes' storages about a container that
// starts. Layers that are not named in time have no digest, and their directory's
// identity instead.
const findLayers = time.Second

// resolvers returns who may know a container's layers.
func (m *Memory) resolvers(info announce.Container) []layer.Resolver {
	if m.Containerd == nil || info.Runtime != announce.Containerd {
		return m.Resolvers
	}
	return append(slices.Clip(m.Resolvers), m.Containerd.For(info.ID))
}

// remember prepares what is needed to know the container's files again. Where the
// layers cannot be found, all files belong to the container alone.
func (c *container) remember(top *mountinfo.Info) {
	m := c.guard.memory
	if m == nil || c.lineage.Load() != nil {
		return
	}
	l := newLineage(m, c.info.ID)
	if c.clockSet {
		l.clock = neverSteady
	}
	ctx, cancel := context.WithTimeout(c.ctx, findLayers)
	defer cancel()
	rootfs, err := m.Host.Rootfs(ctx, layer.Mount{
		ID: top.ID, Major: top.Major, Minor: top.Minor, Options: top.VFSOptions, Mountpoint: c.onHost,
	}, nil, m.resolvers(c.info)...)
	if err != nil {
		c.guard.log.Warn("verdicts on this container's files are not shared: its layers cannot be found",
			"container", c.info.ID, "error", err)
	} else {
		l.rest(rootfs)
		if err := rootfs.Unresolved(); err != nil {
			c.guard.log.Warn("layers without a digest: their verdicts are kept by the directory's identity",
				"container", c.info.ID, "error", err)
		}
	}
	l.acquire()
	c.lineage.Store(l)
}
