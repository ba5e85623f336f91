package fanotify

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Handler decides about events. HandleEvent runs on a reader thread while the
// opener waits: it must not block. It answers the event, or takes it to answer
// later from elsewhere; what it does neither with is denied.
type Handler interface {
	HandleEvent(ev *Event)
}

// An Event is one permission event, lent to a Handler until it returns.
type Event struct {
	group    *Group
	meta     metadata
	stat     unix.Stat_t
	statErr  syscall.Errno
	answered bool
	taken    bool // the descriptor is somebody else's
	null     int  // a descriptor of /dev/null, the reader's
	reader   int  // index of the thread that read it
}

// Descriptor is the file that is being opened, opened read-only for us. It is
// valid until the handler returns, and never the handler's to close.
func (e *Event) Descriptor() int { return int(e.meta.fd) }

// TID is the thread that opens, in our pid namespace.
func (e *Event) TID() int { return int(e.meta.pid) }

// Exec reports whether the event is the exec event (OpExec). The open event of
// the same exec follows it, from the same thread.
func (e *Event) Exec() bool { return e.meta.mask&uint64(OpExec) != 0 }

// Reader is the index of the thread that reads the event, below [Readers.Len].
func (e *Event) Reader() int { return e.reader }

// Stat is the file's state when the event was read; err is not 0 if it could
// not be had, and then the file must not be called anything but unknown.
func (e *Event) Stat() (st *unix.Stat_t, err syscall.Errno) { return &e.stat, e.statErr }

// Answer answers the kernel. Only the first call has an effect.
func (e *Event) Answer(d Decision) {
	if e.answered {
		return
	}
	e.answered = true
	e.group.respond(e.meta.fd, d)
}

// Pass lets through something that has no content: a FIFO, a device. It stops
// further events of this inode, puts back what the kernel had opened for us
// before it answers (a FIFO's writer would otherwise meet us as its reader), and
// allows.
func (e *Event) Pass() {
	if e.answered {
		return
	}
	// A failed ignore mark costs an event at the next open, nothing else.
	_ = e.group.ignore(e.meta.fd)
	// The number must stay ours until the answer; only the file behind it goes.
	_ = ignoringEINTR(func() error { return unix.Dup3(e.null, int(e.meta.fd), unix.O_CLOEXEC) })
	e.Answer(Allow)
}

// Take turns the lent event into one that the caller owns. It may be taken once,
// before or after it was answered.
func (e *Event) Take() *Permission {
	e.taken = true
	e.group.hold()
	return &Permission{group: e.group, fd: e.meta.fd, answered: e.answered}
}

// Detach answers the event and gives its descriptor to the caller, who closes it.
func (e *Event) Detach(d Decision) (fd int) {
	e.Answer(d)
	e.taken = true
	return int(e.meta.fd)
}

// settle is the end of every event on the reader: answered, and closed unless
// somebody took it.
func (e *Event) settle() {
	if e.taken {
		return
	}
	e.Answer(Deny)
	_ = unix.Close(int(e.meta.fd))
}

// A Permission is an event that somebody took: an opener that waits, and a
// descriptor of the file. Any goroutine may answer it, and the first answer
// counts; exactly one owner releases it.
type Permission struct {
	group *Group
	fd    int32

	// mu makes an answer whole: Release must not close the number while another
	// goroutine has claimed the answer but not yet written it, or the response
	// would meet the next event that gets this number.
	mu       sync.Mutex
	answered bool
}

// Descriptor is valid until Release.
func (p *Permission) Descriptor() int { return int(p.fd) }

// Answer answers the kernel if nobody has yet, and reports whether this call
// did. When it returns, the event is answered, by whomever.
func (p *Permission) Answer(d Decision) bool { return p.AnswerAfter(func() {}, d) }

// AnswerAfter is Answer, and calls first if this call is the one that answers:
// for what must be in place before the opener goes on, and must not be if
// somebody else answered. first must not block.
func (p *Permission) AnswerAfter(first func(), d Decision) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answered {
		return false
	}
	first()
	p.answered = true
	p.group.respond(p.fd, d)
	return true
}

// Release closes the descriptor. An event that nobody answered is denied first.
// The owner calls it exactly once; others may still call Answer afterwards.
func (p *Permission) Release() {
	p.Answer(Deny)
	_ = unix.Close(int(p.fd))
	p.group.release()
}
