package guard

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"sync/atomic"

	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/verdict"
)

// A lineage says for whom a verdict on a container's file holds: for a layer of its
// image, and so for every container on that layer, or for the container alone.
type lineage struct {
	memory *Memory
	rootfs *layer.Rootfs   // nil where the layers cannot be found
	layers []verdict.Scope // topmost first
	labels []string        // of layers
	// The container's own files: those on its root filesystem, whose identity names
	// the filesystem behind the overlay, and all others, whose identity names a device.
	// A shared group can hand us another container's event: apart, the two kinds of
	// identity cannot meet.
	own, elsewhere verdict.Scope
	id             string
	salt           uint32 // of the container, for tables that all share
	clock          uint64 // sets of the clock when the container was announced
	// users are the container and the scans of its files: what the last file of a
	// container was scanned for is kept although the container has ended.
	users atomic.Int64

	// seen remembers which files have been found and where: so the next look needs
	// one question instead of one a layer, and a file that is seen again is known.
	// In places that are taken it forgets, which one is left to chance.
	seen [seenPlaces][seenWays]atomic.Uint32
}

const (
	seenPlaces = 4096
	seenWays   = 4
	// inOwn stands for the container's own scope where a slot has a layer's depth.
	inOwn = 0xffff
)

// neverSteady is no number of times that the clock was set.
const neverSteady = ^uint64(0)

func newLineage(m *Memory, id string) *lineage {
	l := &lineage{
		memory: m, id: id, salt: crc32.ChecksumIEEE([]byte(id)),
		own: verdict.ContainerScope(id + "/rootfs"), elsewhere: verdict.ContainerScope(id + "/mounts"),
	}
	if m.Clock != nil {
		l.clock = m.Clock.Sets()
	}
	return l
}

// rest sets the layers that the container rests on.
func (l *lineage) rest(rootfs *layer.Rootfs) {
	l.rootfs = rootfs
	for _, one := range rootfs.Layers() {
		scope, label := scopeOfLayer(one)
		l.layers, l.labels = append(l.layers, scope), append(l.labels, label)
	}
}

// scopeOfLayer names a layer: by its digest and its directory, because one that was
// removed and unpacked again need not be the same.
func scopeOfLayer(l layer.Layer) (scope verdict.Scope, label string) {
	label = l.Digest
	if label == "" {
		label = "dir:" + l.Dir.String()
	}
	return verdict.LayerScope(l.Digest, l.Dir.String()), label
}

// acquire says that the container uses its scopes; release takes that back, with the
// last user.
func (l *lineage) acquire() {
	l.users.Store(1)
	for i, scope := range l.layers {
		l.memory.Cache.Acquire(scope, l.labels[i])
	}
	l.memory.Cache.Acquire(l.own, "container "+l.id)
	l.memory.Cache.Acquire(l.elsewhere, "container "+l.id+", mounts")
}

// hold adds a user, or reports that the last one has gone.
func (l *lineage) hold() bool {
	for {
		n := l.users.Load()
		if n == 0 {
			return false
		}
		if l.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (l *lineage) release() {
	if l.users.Add(-1) != 0 {
		return
	}
	for _, scope := range l.layers {
		l.memory.Cache.Release(scope)
	}
	l.memory.Cache.Release(l.own)
	l.memory.Cache.Release(l.elsewhere)
}

// identify returns the identity of an open file, and whether it is on the root
// filesystem. It does not allocate.
func (l *lineage) identify(fd int) (id layer.Identity, onRootfs bool, err error) {
	if l.rootfs != nil {
		return l.rootfs.Owns(fd)
	}
	id, err = layer.Identify(fd)
	return id, false, err
}

// steady reports whether nobody has set the clock since the container was announced.
// If somebody has, an identity alone proves nothing.
func (l *lineage) steady() bool {
	return l.memory.Clock == nil || l.memory.Clock.Sets() == l.clock
}

// A finding is where something is known about a file.
type finding struct {
	scope    *verdict.Scope
	pristine bool // the scope is a layer's
	again    bool // it was found before, as far as that is remembered
}

// find looks for a file in what is known of the container's layers and of its own.
// What a layer knows under an identity was proven pristine for some container, and
// with the same identity is so in all that rest on the layer. It does not allocate.
func (l *lineage) find(id layer.Identity, onRootfs bool) (f finding, found bool) {
	if !l.steady() {
		return finding{}, false
	}
	key := verdict.FileKey(id.Bytes())
	place := &l.seen[binary.LittleEndian.Uint32(key[:])%seenPlaces]
	tag := uint32(binary.LittleEndian.Uint16(key[4:]))<<16 | 1<<31
	for i := range place {
		hint := place[i].Load()
		if hint&^inOwn != tag {
			continue
		}
		if f, found := l.at(&key, hint&inOwn, onRootfs); found {
			f.again = true
			return f, true
		}
	}
	depth := uint32(inOwn)
	f, found = l.at(&key, depth, onRootfs)
	for i := 0; !found && onRootfs && i < len(l.layers); i++ {
		depth = uint32(i) //nolint:gosec // at most 500
		f, found = l.at(&key, depth, onRootfs)
	}
	if found {
		// Any of them: if the oldest went, five files read in turn would displace each
		// other for ever.
		place[rand.IntN(len(place))].Store(tag | depth)
	}
	return f, found
}

// at looks in one scope.
func (l *lineage) at(key *verdict.FileKey, depth uint32, onRootfs bool) (f finding, found bool) {
	switch {
	case depth == inOwn && onRootfs:
		f.scope = &l.own
	case depth == inOwn:
		f.scope = &l.elsewhere
	case !onRootfs || int(depth) >= len(l.layers):
		return finding{}, false
	default:
		f.scope, f.pristine = &l.layers[depth], true
	}
	return f, l.memory.Cache.Has(f.scope, key)
}
