package guard

import (
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/verdict"
)

// notifying are the filesystems that change a file's change time at the first store
// through a new writable mapping (their page_mkwrite calls file_update_time). tmpfs
// is not among them: a page that was read through such a mapping is written to
// without a fault, and the time stands still (docs/kernel.md).
var notifying = []int64{ //nolint:gochecknoglobals // a table
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
}

// settled is how long ago a file of the container's own must have changed when its
// scan begins. It is more than the granularity of change times (a tick, 10 ms at
// most), so that a later change has another time.
const settled = 20 * time.Millisecond

// A proof is the evidence that a file is the same, and nobody could change it, from
// before a scan until after it. Without it, a verdict is an answer and nothing more.
type proof struct {
	lineage  *lineage
	fd       int // lent
	upper    int // the file behind the overlay's; -1 without
	id       layer.Identity
	scope    verdict.Scope
	origin   layer.Attribution // if onRootfs
	onRootfs bool
	leased   bool // fd has a lease of the caller's, which says that it has no writer
	holds    bool // so far
}

// begin gathers what can be proven before the scan. The file's path is a hint.
func (l *lineage) begin(fd int, hint string) proof { return l.prove(fd, hint, false) }

// beginLeased is begin for a file with a read lease on fd's open file. A second one
// for a moment, to ask for writers, would be the same lease, and take it away.
func (l *lineage) beginLeased(fd int, hint string) proof { return l.prove(fd, hint, true) }

func (l *lineage) prove(fd int, hint string, leased bool) proof {
	p := proof{lineage: l, fd: fd, upper: -1, scope: l.elsewhere, leased: leased}
	var err error
	if p.id, p.onRootfs, err = l.identify(fd); err != nil {
		return p
	}
	if p.onRootfs {
		p.scope = l.own
		p.origin, err = l.rootfs.Attribute(fd, p.id, hint)
		if p.pristine() {
			p.scope = l.layers[p.origin.Depth]
			p.holds = l.rootfs.IsLocal(p.origin.Depth)
			return p
		}
	}
	// A clock that was set can make two contents look the same.
	p.holds = err == nil && l.memory != nil && l.memory.Leases != nil && l.steady() && isSettled(p.fd) && p.reaches(hint) && p.quiet()
	return p
}

// pristine reports whether the file was proven to be a layer's.
func (p *proof) pristine() bool { return p.onRootfs && p.origin.Reason == layer.Pristine }

// isSettled reports whether the last change of a file is long enough ago.
func isSettled(fd int) bool {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false
	}
	changed := time.Unix(st.Ctim.Unix())
	return time.Since(changed) > settled
}

// reaches finds the inode that knows of all writers, and asks its filesystem.
func (p *proof) reaches(hint string) bool {
	if !p.onRootfs {
		var st unix.Statfs_t
		return unix.Fstatfs(p.fd, &st) == nil && slices.Contains(notifying, st.Type)
	}
	if !slices.Contains(notifying, p.lineage.rootfs.UpperFS()) {
		return false
	}
	upper, why, err := p.lineage.rootfs.OpenUpper(p.fd, p.id, hint)
	if err != nil || why != layer.InUpper {
		return false
	}
	p.upper = upper
	return true
}

// quiet reports whether nobody has the file open or mapped for writing.
func (p *proof) quiet() bool {
	for _, fd := range []int{p.fd, p.upper} {
		if fd < 0 || fd == p.fd && p.leased {
			continue
		}
		if busy, err := p.lineage.memory.Leases.Writers(fd); err != nil || busy {
			return false
		}
	}
	return true
}

// complete reports, after the scan, whether the verdict is one on the file as it
// was all the time.
func (p *proof) complete(hint string) bool {
	if !p.holds {
		return false
	}
	steady := p.lineage.steady()
	switch {
	case p.pristine() && !steady:
		again, err := p.lineage.rootfs.Attribute(p.fd, p.id, hint)
		return err == nil && again.Reason == layer.Pristine
	case !p.pristine() && (!steady || !p.quiet()):
		return false
	}
	// The identity comes last: a writer that came and went in between has changed it.
	id, _, err := p.lineage.identify(p.fd)
	return err == nil && id == p.id
}

// end gives back what the proof holds.
func (p *proof) end() {
	if p.upper >= 0 {
		_ = unix.Close(p.upper)
		p.upper = -1
	}
}

func (p *proof) key() verdict.FileKey { return verdict.FileKey(p.id.Bytes()) }

// hintOf says where the file behind fd is, for whoever looks for it.
func hintOf(fd int) string {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	return name
}
