package fanotify

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Decision answers a permission event. The values are the kernel's.
type Decision uint32

// The decisions. A denied opener gets EPERM.
const (
	Allow Decision = unix.FAN_ALLOW
	Deny  Decision = unix.FAN_DENY
)

// String returns the decision as it stands in records and messages.
func (d Decision) String() string {
	if d == Allow {
		return "allow"
	}
	return "deny"
}

// Ops is the set of operations that a mark asks permission events for.
type Ops uint64

// The operations. OpOpen alone gates execs too, since an exec opens the file;
// with OpExec the kernel asks twice for an exec, OpExec first.
const (
	OpOpen Ops = unix.FAN_OPEN_PERM
	OpExec Ops = unix.FAN_OPEN_EXEC_PERM
)

// eventFlags are the open flags of event descriptors. O_NONBLOCK: a process of a
// container may hold a write lease on its own file or own the other end of a
// FIFO, and opening those must not stall the reader.
const eventFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC | unix.O_NONBLOCK

// groupFlags are the init flags of every group. The queue is unlimited because
// an overflowing queue of permission events allows what does not fit
// (fanotify(7)); openers wait, so their number bounds it.
const groupFlags = unix.FAN_CLASS_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
	unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS | unix.FAN_REPORT_TID

// ErrGroupLimit says that this user may not have another group
// (fs.fanotify.max_user_groups).
var ErrGroupLimit = errors.New("fanotify group limit reached")

// A Group is one fanotify group: its marks, its queue of events and the openers
// that wait on it. The kernel wakes all of them at each answer, so a group per
// container keeps answers cheap.
type Group struct {
	fd int
	// refs counts the owner and everybody who is about to use fd. The descriptor
	// is closed when it drops to zero, never earlier.
	refs    atomic.Int64
	readers *Readers // who serves it; nil if nobody does
	closed  chan struct{}
	// tells says that the kernel names the file that it could not open in an event of
	// its own (FAN_REPORT_FD_ERROR), and not as the error of a read.
	tells bool
}

// NewGroup creates a group. It fails with ErrGroupLimit where the user has as
// many as fs.fanotify.max_user_groups allows, and with an *Error otherwise.
func NewGroup() (*Group, error) {
	var flags uint = groupFlags
	if tellsErrors() {
		flags |= unix.FAN_REPORT_FD_ERROR
	}
	fd, err := unix.FanotifyInit(flags, eventFlags)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("%w: %w", ErrGroupLimit, newError("create group", "", err))
	}
	if err != nil {
		return nil, newError("create group", "", err)
	}
	return newGroup(fd), nil
}

// tellsErrors reports whether this kernel knows FAN_REPORT_FD_ERROR (6.13), which tells
// which opener was denied because the kernel could not open the file for us; kernels
// without it deny all the same. Groups that were made by another process are made as
// ours are.
var tellsErrors = sync.OnceValue(func() bool { //nolint:gochecknoglobals // the kernel stays the same
	fd, err := unix.FanotifyInit(groupFlags|unix.FAN_REPORT_FD_ERROR, eventFlags)
	if err == nil {
		_ = unix.Close(fd)
	}
	return !errors.Is(err, unix.EINVAL)
})

func newGroup(fd int) *Group {
	g := &Group{fd: fd, closed: make(chan struct{}), tells: tellsErrors()}
	g.refs.Store(1)
	return g
}

// MarkSuperblock asks for ops on the whole filesystem that dirfd lies on, through
// whatever mount it is opened. dirfd may be an O_PATH descriptor; object names it
// in errors. Marking again adds ops.
func (g *Group) MarkSuperblock(dirfd int, ops Ops, object string) error {
	return g.mark("mark superblock", unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, ops, dirfd, object)
}

// MarkMount asks for ops on files opened through the one mount that dirfd lies
// on. Clones of the mount are not covered. dirfd may be an O_PATH descriptor.
func (g *Group) MarkMount(dirfd int, ops Ops, object string) error {
	return g.mark("mark mount", unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, ops, dirfd, object)
}

// mark goes through /proc/self/fd, because fanotify_mark(2) takes no O_PATH
// descriptor by number, and an O_PATH open is the only one that never waits for
// a reader.
func (g *Group) mark(op string, flags uint, ops Ops, dirfd int, object string) error {
	if !g.acquire() {
		return newError(op, object, unix.EBADF)
	}
	defer g.release()
	err := ignoringEINTR(func() error {
		return unix.FanotifyMark(g.fd, flags, uint64(ops), unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", dirfd))
	})
	if err != nil {
		return newError(op, object, err)
	}
	return nil
}

// Unmark takes all marks away: no new event is raised. Its caller owns the group.
func (g *Group) Unmark() {
	for _, kind := range []uint{unix.FAN_MARK_FILESYSTEM, unix.FAN_MARK_MOUNT, unix.FAN_MARK_INODE} {
		g.flush(kind)
	}
}

// Close ends the group: its marks go at once, so that no new event is raised.
// Events that somebody took keep it alive and served until they are released;
// then the kernel allows whatever slipped in meanwhile. Call it once.
func (g *Group) Close() {
	g.Unmark()
	g.release()
}

// Closed returns a channel that is closed once the group is gone: after Close, and
// after the last of its events was released.
func (g *Group) Closed() <-chan struct{} { return g.closed }

// acquire takes a reference, or reports that the group is closed.
func (g *Group) acquire() bool {
	for {
		n := g.refs.Load()
		if n <= 0 {
			return false
		}
		if g.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// hold takes one more reference for somebody who already has one.
func (g *Group) hold() { g.refs.Add(1) }

func (g *Group) release() {
	if g.refs.Add(-1) == 0 {
		// The last user can be a reader, which must not wait for the kernel.
		go g.end()
	}
}

func (g *Group) end() {
	if g.readers != nil {
		g.readers.remove(g)
	}
	_ = unix.Close(g.fd) // the number is ours; the kernel reports nothing we could act on
	close(g.closed)
}

// respond answers the event with descriptor number fd. The caller holds a
// reference. ENOENT is the end of a killed opener: the kernel does not wait any
// more. After any other error it does, and nobody else can answer.
func (g *Group) respond(fd int32, d Decision) {
	if errno := rawRespond(g.fd, fd, d); errno != 0 && errno != unix.ENOENT {
		g.respondAgain(fd, d, errno)
	}
}

func (g *Group) respondAgain(fd int32, d Decision, errno syscall.Errno) {
	errno = insist(errno, func() syscall.Errno { return rawRespond(g.fd, fd, d) })
	if errno != 0 && g.readers != nil {
		g.readers.health.answerFailed(errno)
	}
}

// ignore stops events for the inode behind the open descriptor fd for good.
// Only for inodes without content that could be scanned (FIFOs, devices): the
// mark survives writes, which would be a hole on a regular file.
func (g *Group) ignore(fd int32) error {
	return g.markInode(unix.FAN_MARK_ADD|unix.FAN_MARK_IGNORE_SURV, int(fd))
}

// Ignore stops events for the regular file behind the open descriptor fd: opens of
// it cost next to nothing, and nobody is asked. The kernel drops the mark at
// write(2), but not when the file is changed through a shared mapping: so the
// caller has proof that nobody can write, and calls Unignore before anybody may.
// The mark goes with the inode when the kernel forgets that.
func (g *Group) Ignore(fd int) error {
	return g.markFile("add ignore mark", unix.FAN_MARK_ADD, fd)
}

// Unignore undoes Ignore. It returns nil where there is no such mark (any more).
func (g *Group) Unignore(fd int) error {
	err := g.markFile("remove ignore mark", unix.FAN_MARK_REMOVE, fd)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// FlushIgnored drops the ignore marks of all inodes, those of FIFOs and devices
// too, which come back by themselves.
func (g *Group) FlushIgnored() {
	if !g.acquire() {
		return // and so they have gone
	}
	defer g.release()
	g.flush(unix.FAN_MARK_INODE)
}

// flush drops all marks of a kind. It cannot fail on a group of ours.
func (g *Group) flush(kind uint) {
	_ = ignoringEINTR(func() error {
		return unix.FanotifyMark(g.fd, unix.FAN_MARK_FLUSH|kind, 0, unix.AT_FDCWD, "/")
	})
}

// markFile changes the ignore mark of a regular file.
func (g *Group) markFile(op string, change uint, fd int) error {
	if !g.acquire() {
		return newError(op, "", unix.EBADF)
	}
	defer g.release()
	if err := g.markInode(change|unix.FAN_MARK_IGNORE, fd); err != nil {
		return newError(op, "", err)
	}
	return nil
}

func (g *Group) markInode(flags uint, fd int) error {
	return ignoringEINTR(func() error {
		return unix.FanotifyMark(g.fd, flags|unix.FAN_MARK_EVICTABLE, uint64(OpOpen|OpExec), fd, "")
	})
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func newError(op, object string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("fanotify: %s %s: %w", op, object, err)
	}
	return &Error{Op: op, Object: object, Errno: errno}
}
