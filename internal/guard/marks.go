package guard

import (
	"container/list"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
)

const (
	// wishes is how many files wait for their mark; what does not fit asks again.
	wishes = 256
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
	guard  *Guard
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

	placed, broken, evicted, flushed atomic.Uint64
	skipped                          [numSkips]atomic.Uint64
}

// A mark is one file that the kernel lets through. It is a [lease.Breaker].
type mark struct {
	marks *marks
	wish
	path  string
	since time.Time
	group *fanotify.Group
	lease *lease.Lease  // nil on a root filesystem that cannot be written
	place *list.Element // in marks.age; nil before and after, guarded by marks.mu
	over  bool          // broken; guarded by marks.mu
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
	numSkips
)

func (s skip) String() string {
	names := [numSkips]string{"queue", "epoch", "gone", "writer", "changed", "writable", "budget", "shared", "failed"}
	if s < numSkips {
		return names[s]
	}
	return "invalid"
}

func newMarks(g *Guard, m *Memory) *marks {
	ms := &marks{
		guard: g, leases: m.Leases, max: m.MaxMarks, queue: make(chan wish, wishes), stop: make(chan struct{}),
		all: make(map[*container]map[layer.Identity]*mark), age: list.New(), of: make(map[*pool]int),
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
	key := w.id.Bytes()
	// The same file of a layer is wished for by each container on its own.
	slot := &ms.asked[(binary.LittleEndian.Uint32(key[8:])^w.c.lineage.Load().salt)%uint32(len(ms.asked))]
	tag := uint32(binary.LittleEndian.Uint16(key[12:]))<<16 | 1<<31
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
	default:
		ms.skipped[skipQueue].Add(1)
		_ = unix.Close(w.fd)
	}
}

// run grants wishes.
func (ms *marks) run() {
	second, sweep := time.NewTicker(time.Second), time.NewTicker(sweeping)
	defer second.Stop()
	defer sweep.Stop()
	for {
		select {
		case w := <-ms.queue:
			if why, ok := ms.grant(w); !ok {
				ms.skipped[why].Add(1)
			}
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

// isReadOnly reports whether the file is on a mount that cannot be written now, and
// remembers for the container if not.
func (w *wish) isReadOnly() bool {
	var st unix.Statfs_t
	readOnly := unix.Fstatfs(w.fd, &st) == nil && st.Flags&unix.ST_RDONLY != 0
	if !readOnly {
		w.c.writable.Store(true)
	}
	return readOnly
}

// frozen reports whether the root filesystem has no upper directory: nothing in the
// container can change a file of it.
func (l *lineage) frozen() bool { return l.rootfs != nil && !l.rootfs.Writable() }

// placeFrozen marks a file that cannot be written. Such a mark is not removed alone.
func (m *mark) placeFrozen() (why skip, ok bool) {
	p := m.c.lineage.Load().begin(m.fd, m.path)
	defer p.end()
	if p.id != m.id || !p.pristine() {
		return skipChanged, false
	}
	if err := m.group.Ignore(m.fd); err != nil {
		return skipFailed, false
	}
	if !m.enter() {
		m.end()
		return skipEpoch, false
	}
	return 0, true
}

// placeLeased takes the lease first, then proves that the file is what the verdict
// was about and that nobody kept a mapping, and marks it last.
func (m *mark) placeLeased() (why skip, ok bool) {
	if m.marks.leases == nil {
		return skipFailed, false
	}
	leased, err := unix.FcntlInt(uintptr(m.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return skipFailed, false
	}
	// The descriptor is of the same open file: it can be looked at although the
	// lease's own may be closed under us by a break.
	m.lease, err = m.marks.leases.Take(leased, m)
	switch {
	case errors.Is(err, lease.ErrWriter):
		return skipWriter, false
	case err != nil:
		return skipFailed, false
	}
	if why, ok := m.verify(); !ok {
		m.lease.Release()
		return why, false
	}
	if !m.lease.With(func(fd int) { err = m.group.Ignore(fd) }) {
		return skipWriter, false // broken meanwhile
	}
	if err != nil {
		m.lease.Release()
		return skipFailed, false
	}
	if !m.enter() {
		m.end()
		return skipEpoch, false
	}
	return 0, true
}

// verify proves, under the lease, that the mark will be on what the verdict was
// about. A pristine file has no mapped writer: opening it for writing would have
// copied it up. For a file of the container's own only the inode behind the overlay
// knows.
func (m *mark) verify() (why skip, ok bool) {
	l := m.c.lineage.Load()
	p := l.beginLeased(m.fd, m.path)
	defer p.end()
	switch {
	case p.id != m.id || p.scope != m.scope:
		return skipChanged, false
	case !p.holds:
		return skipWriter, false
	}
	return 0, true
}

// enter registers a mark that is in place, unless it is to be forgotten already.
func (m *mark) enter() bool {
	ms := m.marks
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m.over {
		return true // placed, and broken since: nothing is left of it
	}
	if m.c.ctx.Err() != nil || m.pool.epoch.Load() != m.epoch || ms.all[m.c][m.id] != nil {
		return false
	}
	if ms.all[m.c] == nil {
		ms.all[m.c] = make(map[layer.Identity]*mark)
	}
	ms.all[m.c][m.id] = m
	m.place = ms.age.PushBack(m)
	ms.of[m.pool]++
	ms.placed.Add(1)
	return true
}

// leave unregisters a mark. The caller holds marks.mu.
func (m *mark) leave() {
	m.over = true
	if m.place == nil {
		return
	}
	ms := m.marks
	ms.age.Remove(m.place)
	m.place = nil
	delete(ms.all[m.c], m.id)
	if len(ms.all[m.c]) == 0 {
		delete(ms.all, m.c)
	}
	if ms.of[m.pool]--; ms.of[m.pool] == 0 {
		delete(ms.of, m.pool)
	}
}

// Broken implements [lease.Breaker]: the mark goes before the writer comes, and so
// does what is known of a file of the container's own. A layer's file stays what it
// is: the writer gets a copy.
func (m *mark) Broken(fd int) {
	_ = m.group.Unignore(fd) // fails only if the group has gone
	if !m.pristine {
		m.c.guard.memory.Cache.Forget(m.scope, verdict.FileKey(m.id.Bytes()))
	}
}

// Ended implements [lease.Breaker]: the file is not what was scanned any more. The
// writer is in, and may wait for nothing of this.
func (m *mark) Ended() {
	m.marks.mu.Lock()
	m.leave()
	m.marks.mu.Unlock()
	m.marks.broken.Add(1)
	m.c.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: m.pool.name, Container: m.c.named(), Op: opDirty, Path: m.path,
		File:   audit.File{Identity: m.id.String(), Pristine: m.pristine, Layer: m.digest()},
		Source: sourceKernel, Reason: audit.ReasonDirty, Detail: "a writer opened a file that was known to be clean",
	})
}

// digest is the layer's, for records.
func (m *mark) digest() string {
	if !m.pristine {
		return ""
	}
	l := m.c.lineage.Load()
	if i := slices.Index(l.layers, m.scope); i >= 0 {
		return l.rootfs.Layers()[i].Digest
	}
	return ""
}

// end takes a mark away without a writer. A file that cannot be written has no
// descriptor to do that by: all marks of its group go, and come back when wished for.
func (m *mark) end() {
	if m.lease == nil {
		m.group.FlushIgnored()
		return
	}
	m.lease.With(func(fd int) { _ = m.group.Unignore(fd) }) // as above
	m.lease.Release()
}

// room makes room for one more mark of a tenant. When all are taken, the tenant with
// the most has to give way to those below their share.
func (ms *marks) room(w wish) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.all[w.c][w.id] != nil {
		return false // it stands already: two wishes were on their way
	}
	if ms.age.Len() < ms.max {
		return true
	}
	victim := w.pool
	if ms.of[w.pool] < ms.max/(len(ms.of)+1) {
		for t, n := range ms.of {
			if n > ms.of[victim] {
				victim = t
			}
		}
	}
	for e := ms.age.Front(); e != nil; e = e.Next() {
		m := e.Value.(*mark) //nolint:errcheck,forcetypeassert // only marks are put there
		if m.pool != victim {
			continue
		}
		if victim == w.pool && time.Since(m.since) < settling {
			return false
		}
		ms.drop(m, &ms.evicted)
		return true
	}
	return false
}

// count returns how many marks a tenant has.
func (ms *marks) count(t *pool) int {
	if ms == nil {
		return 0
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.of[t]
}

// find returns a container's mark on a file, if there is one.
func (ms *marks) find(c *container, id layer.Identity) (since time.Time, leased, found bool) {
	if ms == nil {
		return time.Time{}, false, false
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[c][id]
	if m == nil {
		return time.Time{}, false, false
	}
	return m.since, m.lease != nil, true
}

// A MarkStats is what became of the kernel's marks on clean files.
type MarkStats struct {
	Now, Max                         int
	Placed, Broken, Evicted, Flushed uint64
	Skipped                          map[string]uint64 // clean files that got no mark, by reason
}

func (ms *marks) stats() MarkStats {
	if ms == nil {
		return MarkStats{}
	}
	ms.mu.Lock()
	now := ms.age.Len()
	ms.mu.Unlock()
	st := MarkStats{
		Now: now, Max: ms.max, Placed: ms.placed.Load(), Broken: ms.broken.Load(),
		Evicted: ms.evicted.Load(), Flushed: ms.flushed.Load(), Skipped: map[string]uint64{},
	}
	for s := range numSkips {
		if n := ms.skipped[s].Load(); n > 0 {
			st.Skipped[s.String()] = n
		}
	}
	return st
}

// drop ends a mark, and those that go with it. The caller holds mu.
func (ms *marks) drop(m *mark, counter *atomic.Uint64) {
	together := []*mark{m}
	if m.lease == nil {
		together = slices.Collect(maps.Values(ms.all[m.c]))
	}
	for _, one := range together {
		one.leave()
		counter.Add(1)
		if one.lease != nil {
			one.end()
		}
	}
	if m.lease == nil {
		m.end()
	}
}

// flush takes away all marks of a tenant: what they stand for has changed.
func (ms *marks) flush(t *pool) {
	t.epoch.Add(1) // marks that are being placed see that
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, of := range ms.all {
		for _, m := range of {
			if m.pool == t {
				ms.drop(m, &ms.flushed)
			}
		}
	}
}

// release drops all marks of a container that has ended. Its groups are closed, or
// shared with others.
func (ms *marks) release(c *container) {
	if ms == nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.all[c] {
		ms.drop(m, &ms.flushed)
	}
}

// sweep gives up files that were removed: the descriptor keeps their content on disk.
func (ms *marks) sweep() {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, of := range ms.all {
		for _, m := range of {
			if m.pristine || m.lease == nil {
				continue
			}
			gone := false
			m.lease.With(func(fd int) {
				var st unix.Stat_t
				gone = unix.Fstat(fd, &st) == nil && st.Nlink == 0
			})
			if gone {
				ms.drop(m, &ms.evicted)
			}
		}
	}
}
