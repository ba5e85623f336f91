package keeper

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/pidfd"
)

// stuckPatience is how long a take-over waits for a reader that hangs in the kernel,
// which is opening a file for it.
const stuckPatience = 100 * time.Millisecond

// drainEvery is how often the end of a group's last events is looked for.
const drainEvery = 10 * time.Millisecond

// A holding is an entry with what is done about it. Guarded by Server.mu.
type holding struct {
	Entry
	groups  []*heldGroup
	process int // pidfd; -1 without
	leases  map[uint64]int
	timer   *time.Timer // until the fallback; nil while there is an agent
}

// A heldGroup is one fanotify group of an entry. It is the handler of its events
// while the fallback is answered.
type heldGroup struct {
	*fanotify.Group
	kind     Kind
	answer   fanotify.Decision
	readers  *fanotify.Readers // nil unless the fallback is answered
	answered atomic.Uint64
}

// hold makes a holding of an entry and takes its descriptors over, whatever comes
// of it.
func hold(e Entry) (*holding, error) {
	h := &holding{Entry: e, process: e.Take(Process), leases: make(map[uint64]int)}
	h.Files = nil
	for _, kind := range []Kind{Group, Aside} {
		fd := e.Take(kind)
		if fd < 0 {
			continue
		}
		g, err := fanotify.AdoptGroup(fd)
		if err != nil {
			e.Close()
			h.close()
			return nil, fmt.Errorf("entry %s: %w", e.Key, err)
		}
		h.groups = append(h.groups, &heldGroup{Group: g, kind: kind})
	}
	if len(e.Files) > 0 {
		defer e.Close()
		h.close()
		return nil, fmt.Errorf("entry %s: a descriptor of kind %q is of no use", e.Key, e.Files[0].Kind)
	}
	return h, nil
}

// close gives everything up. If nobody else has the groups, the kernel drops their
// marks and allows whatever waits.
func (h *holding) close() {
	h.stop()
	for _, g := range h.groups {
		g.Disown()
	}
	if h.process >= 0 {
		_ = unix.Close(h.process)
	}
	h.unlease()
}

// release ends the guard of the container: the marks go although somebody else may
// have the groups too.
func (h *holding) release() {
	h.settle()
	for _, g := range h.groups {
		g.Close()
	}
	h.groups = nil
	h.close()
}

// stop calls off the fallback that has not begun.
func (h *holding) stop() {
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
}

// flush takes away the kernel's marks on single files.
func (h *holding) flush() {
	for _, g := range h.groups {
		g.FlushIgnored()
	}
}

// unlease lets go of the leases: whoever waits to write goes on.
func (h *holding) unlease() {
	for _, fd := range h.leases {
		_ = unix.Close(fd)
	}
	clear(h.leases)
}

// exited reports whether the process of the entry has ended.
func (h *holding) exited() bool { return h.process >= 0 && pidfd.Exited(h.process, 0) }

// answer begins to answer by the fallback: first what the last agent had read, then
// whatever comes. limit bounds the last agent's descriptor numbers.
func (h *holding) answer(limit int) error {
	h.stop()
	for _, g := range h.groups {
		if err := g.serve(h.Fallback, limit); err != nil {
			return fmt.Errorf("entry %s: %w", h.Key, err)
		}
	}
	return nil
}

// answering reports whether the fallback is in force.
func (h *holding) answering() bool {
	return slices.ContainsFunc(h.groups, func(g *heldGroup) bool { return g.readers != nil })
}

// status describes the holding.
func (h *holding) status() Held {
	st := Held{
		Key: h.Key, Grace: h.Grace, Fallback: h.Fallback, Leases: len(h.leases),
		Answering: h.answering(), Answered: h.Answered,
	}
	for _, g := range h.groups {
		st.Answered += g.answered.Load()
		if n, err := g.Pending(); err == nil { // a group that cannot tell has none to tell of
			st.Pending += n
		}
	}
	return st
}

// files duplicates the descriptors for the next agent. The caller closes them.
func (h *holding) files() ([]File, error) {
	var files []File
	add := func(kind Kind, fd int, err error) error {
		if err == nil {
			files = append(files, File{kind, fd})
		}
		return err
	}
	var errs []error
	for _, g := range h.groups {
		fd, err := g.Duplicate()
		errs = append(errs, add(g.kind, fd, err))
	}
	if h.process >= 0 {
		fd, err := pidfd.Duplicate(h.process)
		errs = append(errs, add(Process, fd, err))
	}
	return files, errors.Join(errs...)
}

// settle ends the fallback before the next agent comes. A group whose reader hangs
// with an event is not for that agent: the answer to this event could meet another
// one's. It is given up as soon as the reader is free.
func (h *holding) settle() {
	h.stop()
	h.groups = slices.DeleteFunc(h.groups, func(g *heldGroup) bool {
		h.Answered += g.answered.Swap(0)
		if g.rest() {
			return false
		}
		go g.abandon()
		return true
	})
}

// serve reads and answers the group's events on a thread of its own: the kernel may
// hang in opening a file for us.
func (g *heldGroup) serve(answer fanotify.Decision, limit int) error {
	g.answer = answer
	g.answered.Add(uint64(g.Settle(limit, answer))) //nolint:gosec // a count
	var err error
	if g.readers, err = fanotify.StartAside(); err != nil {
		return fmt.Errorf("answer events: %w", err)
	}
	if err := g.readers.Add(g.Group, g, g.unopened); err != nil {
		g.readers.Stop()
		g.readers = nil
		return fmt.Errorf("answer events: %w", err)
	}
	return nil
}

// HandleEvent answers by the fallback.
func (g *heldGroup) HandleEvent(ev *fanotify.Event) {
	ev.Answer(g.answer)
	g.answered.Add(1)
}

// unopened counts an opener that the kernel has denied itself.
func (g *heldGroup) unopened(int, error) { g.answered.Add(1) }

// rest stops reading and reports whether nothing of it is left.
func (g *heldGroup) rest() bool {
	if g.readers == nil {
		return true
	}
	if !g.readers.Remove(g.Group, stuckPatience) {
		return false
	}
	g.readers.Stop()
	g.readers = nil
	return true
}

// abandon gives a group up whose reader hangs, as soon as that is free. Whoever has
// waited behind it gets the fallback: a group that is closed would let them through.
func (g *heldGroup) abandon() {
	g.free()
	g.Unmark()
	if err := g.readers.Add(g.Group, g, g.unopened); err == nil {
		for n, err := g.Pending(); n > 0 && err == nil; n, err = g.Pending() {
			<-time.After(drainEvery)
		}
		g.free()
	}
	g.readers.Stop()
	g.Disown()
}

// free stops reading and waits until no reader has to do with the group.
func (g *heldGroup) free() {
	for !g.readers.Remove(g.Group, time.Minute) {
	}
}
