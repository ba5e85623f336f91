package guard

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// A container is one guarded container, from its announcement to its exit.
type container struct {
	guard  *Guard
	info   announce.Container
	key    string // names it for the keeper, unlike any other container with its id
	since  time.Time
	proc   *process
	mntns  unix.Stat_t // its mount namespace
	root   int         // mount id of its rootfs, the same before and after the pivot
	onHost string      // mount point of its rootfs when it was announced
	group  *fanotify.Group
	// sharing is set if group is not this container's alone.
	sharing *sharedGroup
	aside   *aside // for mounts on slow filesystems; nil without

	pool     atomic.Pointer[pool]    // a reload may move it to another tenant
	lineage  atomic.Pointer[lineage] // set before its first mark; nil without a memory
	counters audit.Counters
	clockSet bool // while an earlier agent guarded it, or none did
	pairs    execPairs
	writable atomic.Bool // a file was met on a mount that can be written

	// ctx ends when the container is released; scans for it end with it.
	ctx    context.Context //nolint:containedctx // it is the container's lifetime
	cancel context.CancelCauseFunc
	once   sync.Once // of dismantle

	// placing is held while marks are placed or given up: a reload and the end of
	// the container can meet, and it may take as long as a slow filesystem.
	placing sync.Mutex

	mu     sync.Mutex
	mounts []Mount
	placed *policy // under which the marks were placed
}

// HandleEvent answers what needs no scan and hands on the rest. It runs on a
// reader thread: see the package comment.
func (c *container) HandleEvent(ev *fanotify.Event) {
	t := c.pool.Load()
	p := t.policy.Load()
	st, errno := ev.Stat()
	switch {
	case !p.wants(ev.Exec()):
		ev.Answer(fanotify.Allow)
		c.count(t, outcome{fanotify.Allow, audit.ReasonNotSelected})
	case errno == 0 && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		ev.Answer(fanotify.Allow)
		c.count(t, outcome{fanotify.Allow, audit.ReasonNotRegular})
	case errno == 0 && st.Mode&unix.S_IFMT != unix.S_IFREG:
		ev.Pass()
		c.count(t, outcome{fanotify.Allow, audit.ReasonNotRegular})
	case errno == 0 && !ev.Exec() && c.pairs.take(ev.TID(), st):
		ev.Answer(fanotify.Allow)
		c.count(t, outcome{fanotify.Allow, audit.ReasonExecPair})
	case errno == 0 && p.instant && c.answerInstant(t, p, ev):
	case errno == 0 && p.plan != nil && c.answerKnown(t, p, ev):
	default:
		c.handOn(t, p, ev)
	}
}

// usePolicy returns the policy that holds for the container now, held for one
// scan: the caller calls unuse on it. It returns nil for a container that was
// released, which a reload no longer moves.
func (c *container) usePolicy() *policy {
	for {
		// A reload moves the container before it retires what it had.
		p := c.pool.Load().usePolicy()
		if p != nil || c.ctx.Err() != nil {
			return p
		}
	}
}

// count adds one answered event to the tenant's and the container's counters.
func (c *container) count(t *pool, o outcome) {
	deny := o.decision == fanotify.Deny
	t.counters.Add(deny, o.reason)
	c.counters.Add(deny, o.reason)
}

// files lends scanner.File values to the reader threads, which must not
// allocate.
var files = sync.Pool{New: func() any { return new(scanner.File) }} //nolint:gochecknoglobals // a free list

// answerInstant answers if the tenant's scanners can tell from metadata alone.
func (c *container) answerInstant(t *pool, p *policy, ev *fanotify.Event) bool {
	f := files.Get().(*scanner.File) //nolint:errcheck // only files are put there
	defer files.Put(f)
	c.describe(f, t, ev)
	if p.tooBig(f.Size) {
		return false
	}
	v, known := scanner.EvaluateInstant(p.stages, f)
	if !known || v.Outcome != scanner.Clean {
		return false // whatever is not clean deserves a record
	}
	ev.Answer(fanotify.Allow)
	c.count(t, outcome{fanotify.Allow, audit.ReasonClean})
	return true
}

// answerKnown answers if the verdicts of all scanners that the tenant needs are
// known, and clean. Whatever else is known, a worker finds as well, and records.
func (c *container) answerKnown(t *pool, p *policy, ev *fanotify.Event) bool {
	l := c.lineage.Load()
	if l == nil {
		return false
	}
	id, onRootfs, err := l.identify(ev.Descriptor())
	if err != nil {
		return false
	}
	where, found := l.find(id, onRootfs)
	if !found {
		return false
	}
	epoch := t.epoch.Load() // before the generations are asked for
	if !c.knownClean(t, p, ev, where, id) {
		return false
	}
	if where.again && p.marks(where, c) {
		c.guard.marks.want(wish{c: c, pool: t, epoch: epoch, id: id, scope: *where.scope, pristine: where.pristine}, ev)
	}
	ev.Answer(fanotify.Allow)
	c.count(t, outcome{fanotify.Allow, audit.ReasonClean})
	return true
}

// knownClean reports whether what is known of a file is enough to allow it.
func (c *container) knownClean(t *pool, p *policy, ev *fanotify.Event, where finding, id layer.Identity) bool {
	f := files.Get().(*scanner.File) //nolint:errcheck // only files are put there
	defer files.Put(f)
	c.describe(f, t, ev)
	if p.tooBig(f.Size) {
		return false
	}
	view := p.view()
	defer p.views.Put(view)
	view.Look(verdict.Lane(ev.Reader()), *where.scope, verdict.FileKey(id.Bytes()))
	v, settled := view.Settle(f)
	return settled && v.Outcome == scanner.Clean
}

// describe fills f from an event.
func (c *container) describe(f *scanner.File, t *pool, ev *fanotify.Event) {
	st, _ := ev.Stat()
	*f = scanner.File{FD: ev.Descriptor(), Size: st.Size, Tenant: t.name, Container: c.info.ID, PID: ev.TID()}
	if ev.Exec() {
		f.Op = scanner.OpExec
	}
}

// handOn gives an event to the tenant's workers, or answers it by policy if they
// cannot take it.
func (c *container) handOn(t *pool, p *policy, ev *fanotify.Event) {
	k := newTask(c, t, p, ev)
	switch {
	case isOurs(ev.TID()):
		c.refuse(k, ev, outcome{fanotify.Allow, audit.ReasonSelf}, "opened by the agent itself, which is a defect: please report it")
	case c.ctx.Err() != nil:
		c.refuse(k, ev, p.stopping(), errStopping.Error())
	case !c.guard.hold(t):
		c.refuse(k, ev, p.overload(), "too many events wait for a scan: descriptors are scarce")
	default:
		k.start(ev)
	}
}

// refuse answers on the reader thread an event that will not be scanned. It is
// the slow exception, so it may allocate; what it must not do is wait.
func (c *container) refuse(k *task, ev *fanotify.Event, o outcome, detail string) {
	k.describe()
	if k.audit {
		o = outcome{fanotify.Allow, audit.ReasonAuditMode}
	}
	c.guard.records.Announce()
	ev.Answer(o.decision)
	k.told(o, account{detail: detail})
}

// unopened records an opener that the kernel denied because it could not open
// the file for us.
func (c *container) unopened(tid int, errno error) {
	if fanotify.IsScarce(errno) {
		c.guard.marks.starve()
	}
	t := c.pool.Load()
	o := outcome{fanotify.Deny, audit.ReasonOpenFailed}
	c.count(t, o)
	c.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: t.name, Container: c.named(), Op: scanner.OpOpen.String(),
		PID: tgid(tid), Exe: exeOf(tid), Decision: "deny", Source: sourceKernel, Reason: o.reason,
		Detail: "the kernel could not open the file for the agent: " + errno.Error(),
	})
}

// isOurs reports whether a thread belongs to this process.
func isOurs(tid int) bool { return unix.Tgkill(unix.Getpid(), tid, 0) == nil }

// execPairs remembers, for an exec that was just allowed, that the open event of
// the same file by the same thread comes next, so that it is not scanned twice.
// Nothing of the container runs between the two events of a thread.
type execPairs struct {
	pending atomic.Int32 // len(files), to be read without the lock
	mu      sync.Mutex
	files   map[int]fileState // by thread id
}

// maxPairs bounds what openers that were killed between the two events leave
// behind.
const maxPairs = 1024

// fileState tells whether a file is still what it was a moment ago.
type fileState struct {
	dev, ino uint64
	size     int64
	ctim     unix.Timespec
}

func stateOf(st *unix.Stat_t) fileState {
	return fileState{dev: st.Dev, ino: st.Ino, size: st.Size, ctim: st.Ctim}
}

func (e *execPairs) put(tid int, s fileState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.files == nil || len(e.files) >= maxPairs {
		e.files = make(map[int]fileState)
	}
	e.files[tid] = s
	e.pending.Store(int32(len(e.files)))
}

// take reports whether tid's open event for st was expected, and forgets it.
func (e *execPairs) take(tid int, st *unix.Stat_t) bool {
	if e.pending.Load() == 0 {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, found := e.files[tid]
	delete(e.files, tid)
	e.pending.Store(int32(len(e.files)))
	return found && s == stateOf(st)
}
