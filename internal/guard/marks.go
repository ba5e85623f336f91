package guard

import (
	"container/list"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
)

const (
	// wishes is how many files wait for their mark, at least and at most; what does not
	// fit asks again.
	fewestWishes, wishes = 16, 256
	// pause is how many seconds a file that was wished for is not wished for again.
	pause = 10
	// settling is how long a mark stays before another file of the same tenant may
	// take its place: a tenant with more files than marks would else do nothing else.
	settling = 10 * time.Second
	// sweeping is the time between two looks for marked files that have no name any more.
	sweeping = 30 * time.Second
)

// A wish is a file that was found clean again, with a descriptor of its own.
type wish struct {
	c        *container
	pool     *pool
	epoch    uint64 // the pool's, before its verdicts were asked for
	id       layer.Identity
	scope    verdict.Scope // in which it is known
	pristine bool          // the scope is a layer's
	fd       int
}

// marks are the kernel's ignore marks on clean files: opens of those raise no event.
//
// A mark stands only while nobody can write: under a read lease, or where the root
// filesystem has no directory that could take a write. Wishes come from the readers,
// one goroutine grants them, and the lease's thread takes marks away. A mark is put
// in place and removed under its lease's lock, so never behind a writer's back.
//
// Lock order: marks.mu, then the lease's lock.
type marks struct {
	leases *lease.Holder
	max    int
	queue  chan wish
	stop   chan struct{}
	done   sync.WaitGroup
	now    atomic.Uint32       // seconds since the start
	asked  [4096]atomic.Uint32 // when files were last wished for: tag and time

	mu  sync.Mutex
	all map[*container]map[layer.Identity]*mark
	age *list.List // of *mark, oldest first
	of  map[*pool]int

	lacking func() int64  // descriptors that events need of the marks' share
	leased  atomic.Int64  // marks with a lease, and so with a descriptor
	thin    chan struct{} // one place: some have to go
	starved atomic.Bool   // whatever the shares are

	placed, broken, evicted, flushed, gaveWay atomic.Uint64
	skipped                                   [numSkips]atomic.Uint64
}

// A skip says why a file got no mark. The set is closed: each has a counter.
type skip uint8

const (
	skipQueue    skip = iota // too many wait
	skipEpoch                // verdicts or policy have changed meanwhile
	skipGone                 // the container has ended
	skipWriter               // somebody has the file open or mapped for writing
	skipChanged              // the file is another one by now
	skipWritable             // kernelMarks: readonly, and the mount can be written
	skipBudget               // no room, and no mark old enough to give way
	skipShared               // the mark would be for other containers, too
	skipFailed               // the kernel refused lease or mark
	skipKeeper               // nobody would hold the lease if the agent ended
	numSkips
)

func (s skip) String() string {
	names := [numSkips]string{"queue", "epoch", "gone", "writer", "changed", "writable", "budget", "shared", "failed", "keeper"}
	if s < numSkips {
		return names[s]
	}
	return "invalid"
}

// Wishes returns how many clean files wait for their mark at most, each with a
// descriptor, where there may be so many marks.
func Wishes(maxMarks int) int {
	if maxMarks == 0 {
		return 0
	}
	return min(max(maxMarks/2, fewestWishes), wishes)
}

func newMarks(m *Memory, lacking func() int64) *marks {
	// A wish holds a descriptor as a mark does, which an agent with few has to count.
	waiting := Wishes(m.MaxMarks)
	ms := &marks{
		leases: m.Leases, max: m.MaxMarks, queue: make(chan wish, waiting), stop: make(chan struct{}),
		all: make(map[*container]map[layer.Identity]*mark), age: list.New(), of: make(map[*pool]int),
		lacking: lacking, thin: make(chan struct{}, 1),
	}
	ms.done.Go(ms.run)
	return ms
}

// marks reports whether the tenant wants a clean file marked.
func (p *policy) marks(where finding, c *container) bool {
	switch p.KernelMarks {
	case tenant.MarkLayers:
		return where.pristine
	case tenant.MarkAll:
		return true
	case tenant.MarkReadonly:
		return !c.writable.Load()
	case tenant.MarkOff:
	}
	return false
}

// want asks for a mark, unless the file was wished for a moment ago. It answers the
// event if it needs its descriptor. It runs on a reader thread and allocates nothing.
func (ms *marks) want(w wish, ev *fanotify.Event) {
	if ms == nil || ms.max == 0 {
		return
	}
	slot, tag := ms.slot(&w)
	now := ms.now.Load() & 0x7fff
	if was := slot.Load(); was&0xffff0000 == tag && now-was&0x7fff < pause {
		return
	}
	if len(ms.queue) == cap(ms.queue) {
		ms.skipped[skipQueue].Add(1)
		return
	}
	slot.Store(tag | now)
	w.fd = ev.Detach(fanotify.Allow)
	select {
	case ms.queue <- w:
	default: // another reader was faster
		ms.skipped[skipQueue].Add(1)
		slot.Store(0)
		_ = unix.Close(w.fd)
	}
}

// slot returns the place that remembers when a file was last wished for, and what
// tells the file there.
func (ms *marks) slot(w *wish) (slot *atomic.Uint32, tag uint32) {
	key := w.id.Bytes()
	// The same file of a layer is wished for by each container on its own.
	place := binary.LittleEndian.Uint32(key[8:]) ^ w.c.lineage.Load().salt
	return &ms.asked[place%uint32(len(ms.asked))], uint32(binary.LittleEndian.Uint16(key[12:]))<<16 | 1<<31
}

// run grants wishes.
func (ms *marks) run() {
	second, sweep := time.NewTicker(time.Second), time.NewTicker(sweeping)
	defer second.Stop()
	defer sweep.Stop()
	for {
		select {
		case w := <-ms.queue:
			why, ok := ms.grant(w)
			if ok {
				continue
			}
			ms.skipped[why].Add(1)
			if why == skipEpoch { // what was in the way is over
				slot, _ := ms.slot(&w)
				slot.Store(0)
			}
		case <-ms.thin:
			ms.shed()
		case <-second.C:
			ms.now.Add(1)
		case <-sweep.C:
			ms.sweep()
		case <-ms.stop:
			return
		}
	}
}

// close ends the goroutine. All containers have been dropped.
func (ms *marks) close() {
	if ms == nil {
		return
	}
	close(ms.stop)
	ms.done.Wait()
	for {
		select {
		case w := <-ms.queue:
			_ = unix.Close(w.fd)
		default:
			return
		}
	}
}

// grant places a mark, or says why not. It closes the wish's descriptor.
func (ms *marks) grant(w wish) (why skip, ok bool) {
	defer unix.Close(w.fd)
	switch {
	case w.c.ctx.Err() != nil:
		return skipGone, false
	case w.pool.epoch.Load() != w.epoch || w.c.pool.Load() != w.pool:
		return skipEpoch, false
	case w.pool.policy.Load().KernelMarks == tenant.MarkReadonly && !w.isReadOnly():
		return skipWritable, false
	case w.c.sharing != nil && w.scope == w.c.lineage.Load().elsewhere:
		// The file can be on a volume of another container in the same group, and a
		// reload can have given that another tenant.
		return skipShared, false
	case !ms.room(w):
		return skipBudget, false
	}
	m := &mark{marks: ms, wish: w, path: hintOf(w.fd), since: time.Now(), group: w.c.group}
	if w.c.lineage.Load().frozen() && w.c.sharing == nil {
		return m.placeFrozen()
	}
	return m.placeLeased()
}
