package fanotify

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A group outlives the process that made it as long as anybody has a descriptor of
// it: openers wait on, unread events stay queued, marks stay. What follows is for
// handing it to another process.

// groupLink is where a group's descriptor leads in /proc/self/fd.
const groupLink = "anon_inode:[fanotify]"

// AdoptGroup takes over a group of another process, and fd with it, whatever comes of
// it. It fails if fd is no fanotify group.
func AdoptGroup(fd int) (*Group, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && link != groupLink {
		err = fmt.Errorf("descriptor is %s, not a fanotify group", link)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("adopt group: %w", err)
	}
	return newGroup(fd), nil
}

// Duplicate returns another descriptor of the group, which keeps it alive. The caller
// closes it.
func (g *Group) Duplicate() (int, error) {
	if !g.acquire() {
		return -1, newError("duplicate group", "", unix.EBADF)
	}
	defer g.release()
	fd, err := unix.FcntlInt(uintptr(g.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, newError("duplicate group", "", err)
	}
	return fd, nil
}

// Disown gives up our descriptor and leaves the group to whoever has another: marks
// and events stay. Like [Group.Close] it is called once, instead of it; events that
// somebody took keep the descriptor until they are released.
func (g *Group) Disown() { g.release() }

// Settle answers every event that was read and not answered by a process that has
// ended: a response names an event by the number that its descriptor had in that
// process, and those are below limit. Several events have one number where a process
// could not answer and closed the descriptor, or where several processes have ended. It
// returns how many waited. Nobody may be reading the group: a new event could have the
// number of an old one.
func (g *Group) Settle(limit int, d Decision) (settled int) {
	if !g.acquire() {
		return 0
	}
	defer g.release()
	for number := range int32(limit) { //nolint:gosec // a descriptor number
		for rawRespond(g.fd, number, d) == 0 {
			settled++
		}
	}
	return settled
}

// Remove stops serving g, which stays open: its events wait for whoever reads it
// next. It reports whether no reader has to do with the group any more: one may hang
// in the kernel with an event of it, for longer than patience.
func (r *Readers) Remove(g *Group, patience time.Duration) bool {
	r.mu.Lock()
	r.unserve(g)
	r.mu.Unlock()
	// A turn that began before may have found the group in the table.
	before := r.Turns()
	over := time.After(patience)
	for i, was := range before {
		for was%2 == 1 && r.threads[i].turns.Load() == was {
			select {
			case <-over:
				return false
			case <-time.After(time.Millisecond):
			}
		}
	}
	return true
}

// Pending returns how many events nobody has read yet.
func (g *Group) Pending() (int, error) {
	if !g.acquire() {
		return 0, newError("count events", "", unix.EBADF)
	}
	defer g.release()
	bytes, err := unix.IoctlGetInt(g.fd, unix.TIOCINQ)
	if err != nil {
		return 0, newError("count events", "", err)
	}
	return bytes / metadataLen, nil
}
