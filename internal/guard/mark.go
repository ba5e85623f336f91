package guard

import (
	"container/list"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/verdict"
)

// A mark is one file that the kernel lets through. It is a [lease.Breaker].
type mark struct {
	marks *marks
	wish
	path  string
	since time.Time
	group *fanotify.Group
	lease *lease.Lease  // nil on a root filesystem that cannot be written
	copy  atomic.Uint64 // serial of the keeper's copy of the lease; 0 without
	place *list.Element // in marks.age; nil before and after, guarded by marks.mu
	over  bool          // broken; guarded by marks.mu
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
	if err := m.share(); err != nil {
		m.lease.Release()
		return skipKeeper, false
	}
	if !m.lease.With(func(fd int) { err = m.group.Ignore(fd) }) {
		m.unshare()
		return skipWriter, false // broken meanwhile
	}
	if err != nil {
		m.lease.Release()
		m.unshare()
		return skipFailed, false
	}
	if !m.enter() {
		m.end()
		return skipEpoch, false
	}
	return 0, true
}

// share gives the keeper a copy of the lease: if the agent ends, the mark goes first.
func (m *mark) share() error {
	k := m.c.guard.keeper
	if k == nil {
		return nil // and the group ends with the agent, marks and all
	}
	serial, err := k.Lease(m.c.key, m.fd)
	if err == nil {
		m.copy.Store(serial)
	}
	return err
}

// unshare lets the keeper close its copy. The lease has ended.
func (m *mark) unshare() {
	if serial := m.copy.Swap(0); serial != 0 {
		m.c.guard.keeper.Unlease(serial)
	}
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
	m.unshare()
	m.marks.mu.Lock()
	m.leave()
	m.marks.mu.Unlock()
	m.marks.broken.Add(1)
	m.c.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: m.pool.name, Container: m.c.named(), Op: audit.OpDirty, Path: m.path,
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
	m.unshare()
}
