package fanotify

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// EventsARead is how many events a reader takes at once. Each is an open descriptor and an
	// opener that waits for this thread, so a reader leaves the rest to its
	// neighbours.
	EventsARead = 4
	readBuffer  = EventsARead * metadataLen
	// readyBatch is how many ready groups one epoll_wait returns.
	readyBatch = 64
	// stopSlot is the epoll data of the descriptor that wakes a reader to stop.
	stopSlot = -1
	// unpinned stands for a CPU where a reader is not pinned.
	unpinned = -1
)

// Readers are the threads that read events, and the groups that they serve.
//
// Each is locked to an OS thread and pinned to a CPU, with an epoll of its own
// over all groups: the kernel wakes all of them, and the one on the opener's CPU
// wins, which costs a context switch instead of an interrupt to another CPU.
type Readers struct {
	threads []*reader
	procs   int // by which GOMAXPROCS was raised
	null    int // /dev/null, see Event.Pass
	wg      sync.WaitGroup
	once    sync.Once // of Stop

	mu      sync.Mutex // serialises Add, remove and Stop
	stopped bool       // the epolls are closed
	served  atomic.Pointer[[]*served]

	health *health
}

// served is a group with its handler. Its index in Readers.served is its slot.
type served struct {
	group    *Group
	handler  Handler
	unopened func(tid int, errno error)
}

// reader is one thread.
type reader struct {
	set   *Readers
	index int // in set
	cpu   int // to be pinned to, or unpinned
	epfd  int
	stop  int // eventfd
	// turns counts beginnings and ends of work on a group: odd while at work.
	turns atomic.Uint64
	// failing says that the last call failed, and that the next one that does is
	// followed by a rest.
	failing bool
}

// DefaultReaders is the number of readers for the CPUs this process may use: one
// each on small machines. Every event wakes all readers, so on large machines
// only eight; an opener on another CPU then pays for an inter-processor wake-up.
func DefaultReaders() int { return min(len(cpus()), 8) }

// cpus lists the CPUs that this process may run on.
func cpus() []int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return []int{0}
	}
	var list []int
	for cpu := 0; len(list) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			list = append(list, cpu)
		}
	}
	return list
}

// Start starts n reader threads, spread over the CPUs this process may use.
//
// A reader blocks in epoll_wait like any system call, but it must get back to
// work without waiting for a place in Go's scheduler: so Start raises GOMAXPROCS
// by n, once.
func Start(n int) (*Readers, error) {
	allowed := cpus()
	pins := make([]int, n)
	for i := range pins {
		pins[i] = allowed[i%len(allowed)]
	}
	r, err := start(pins, newHealth())
	if err != nil {
		return nil, err
	}
	r.procs = n
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	return r, nil
}

// StartAside starts a single reader that is not pinned, for groups whose files
// the kernel may take forever to open for us: on network and FUSE filesystems.
// It may hang there without holding up anybody else's events.
func StartAside() (*Readers, error) { return start([]int{unpinned}, newHealth()) }

// StartAside is [StartAside], and what the reader meets is counted with r's.
func (r *Readers) StartAside() (*Readers, error) { return start([]int{unpinned}, r.health) }

// start starts a reader for each CPU in pins.
func start(pins []int, h *health) (*Readers, error) {
	r := &Readers{health: h}
	r.served.Store(&[]*served{})
	var err error
	if r.null, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	for i, cpu := range pins {
		t, err := newReader(r, i, cpu)
		if err != nil {
			r.closeDescriptors()
			return nil, err
		}
		r.threads = append(r.threads, t)
	}
	for _, t := range r.threads {
		r.wg.Go(t.run)
	}
	return r, nil
}

func newReader(set *Readers, index, cpu int) (*reader, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	t := &reader{set: set, index: index, cpu: cpu, epfd: epfd, stop: stop}
	if err := t.watch(stop, stopSlot); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// Len returns the number of reader threads.
func (r *Readers) Len() int { return len(r.threads) }

// Stats returns the counts so far.
func (r *Readers) Stats() Stats { return r.health.stats() }

// Failed returns a channel that has the first failure after which openers hang until
// this process ends: an answer that the kernel did not take, or events that could
// not be read. Whoever receives it should end the process.
func (r *Readers) Failed() <-chan error { return r.health.failed }

// Turns returns, for each reader, a number that changes when it begins or ends
// work on a group and is odd in between. A reader with the same odd number at two
// looks some seconds apart is stuck: in a handler, or in the kernel's attempt to
// open a file for us.
func (r *Readers) Turns() []uint64 {
	turns := make([]uint64, len(r.threads))
	for i, t := range r.threads {
		turns[i] = t.turns.Load()
	}
	return turns
}

// Add starts serving g: its events go to h. unopened is told of openers that the
// kernel denied because it could not open the file for us (tid is 0 where the
// kernel does not tell); it must not block either. g is served until it is closed
// and its last event is released: an opener that waits on a group without a
// reader would wait for ever. A group is added once.
func (r *Readers) Add(g *Group, h Handler, unopened func(tid int, errno error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := slices.Clone(*r.served.Load())
	slot := slices.Index(next, nil)
	if slot < 0 {
		slot = len(next)
		next = append(next, nil)
	}
	next[slot] = &served{group: g, handler: h, unopened: unopened}
	r.served.Store(&next) // before the first event can arrive
	g.readers = r
	for _, t := range r.threads {
		if err := t.watch(g.fd, int32(slot)); err != nil {
			r.unserve(g)
			g.readers = nil
			return err
		}
	}
	return nil
}

// remove stops serving g: the last user of a closed group calls it, just before
// its descriptor goes.
func (r *Readers) remove(g *Group) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unserve(g)
}

// unserve is remove for callers that hold r.mu.
func (r *Readers) unserve(g *Group) {
	if r.stopped {
		return
	}
	next := slices.Clone(*r.served.Load())
	slot := slices.IndexFunc(next, func(s *served) bool { return s != nil && s.group == g })
	if slot < 0 {
		return
	}
	for _, t := range r.threads {
		// ENOENT: Add failed before this reader was told.
		_ = unix.EpollCtl(t.epfd, unix.EPOLL_CTL_DEL, g.fd, nil)
	}
	next[slot] = nil
	r.served.Store(&next)
}

// Stop ends the threads and waits for them. Groups still served are left alone.
// Stopping twice is harmless.
func (r *Readers) Stop() { r.once.Do(r.end) }

func (r *Readers) end() {
	for _, t := range r.threads {
		var one [8]byte
		one[0] = 1
		_, _ = unix.Write(t.stop, one[:]) // an eventfd at 0 takes 1
	}
	r.wg.Wait()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - r.procs)
	r.closeDescriptors()
}

func (r *Readers) closeDescriptors() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	for _, t := range r.threads {
		t.close()
	}
	_ = unix.Close(r.null)
}

func (t *reader) watch(fd int, slot int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: slot}
	if err := unix.EpollCtl(t.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("add group to epoll: %w", err)
	}
	return nil
}

func (t *reader) close() {
	_ = unix.Close(t.epfd)
	_ = unix.Close(t.stop)
}

// run is the thread. It never returns the thread to Go's pool, since it is
// pinned: the thread ends with the goroutine.
func (t *reader) run() {
	runtime.LockOSThread()
	if t.cpu != unpinned {
		var set unix.CPUSet
		set.Set(t.cpu)
		// Where it fails, it is only slower: the CPU may have gone offline.
		_ = unix.SchedSetaffinity(0, &set)
	}
	var ready [readyBatch]unix.EpollEvent
	var buf [readBuffer]byte
	ev := &Event{null: t.set.null, reader: t.index}
	for {
		n, going := t.wait(ready[:])
		if !going {
			return
		}
		for i := range n {
			if ready[i].Fd == stopSlot {
				return
			}
			t.serve(int(ready[i].Fd), buf[:], ev)
		}
	}
}

// wait waits for ready groups. going is false if there is nothing to wait on any more,
// which must not happen.
func (t *reader) wait(ready []unix.EpollEvent) (n int, going bool) {
	if n := epollReady(t.epfd, ready); n > 0 {
		return n, true
	}
	n, err := unix.EpollWait(t.epfd, ready, -1)
	errno, _ := err.(syscall.Errno) //nolint:errorlint // it is what x/sys returns
	switch {
	case err == nil:
		return n, true
	case errno == unix.EINTR:
		return 0, true
	case isFatal(errno):
		t.set.health.fail(&Error{Op: "wait for events", Errno: errno})
		return 0, false
	}
	t.set.health.readErrors.Add(1)
	t.rest()
	return 0, true
}

// rest lets some time pass if the call before failed as well.
func (t *reader) rest() {
	if t.failing {
		<-time.After(breather)
	}
	t.failing = true
}

// serve reads one buffer of events from the group in slot and handles them.
func (t *reader) serve(slot int, buf []byte, ev *Event) {
	t.turns.Add(1) // before the look at the table: see Remove
	defer t.turns.Add(1)
	table := *t.set.served.Load()
	if slot >= len(table) || table[slot] == nil {
		return // removed since epoll_wait
	}
	s := table[slot]
	if !s.group.acquire() {
		return
	}
	defer s.group.release()
	switch n, errno := readEvents(s.group.fd, buf); errno {
	case 0:
		t.failing = false
		t.dispatch(s, buf[:n], ev)
	case unix.EAGAIN, unix.EINTR: // a neighbour was faster
	default:
		t.failed(s, errno)
	}
}

// failed is a read that brought no event. Without FAN_REPORT_FD_ERROR that is an event
// whose file could not be opened, which the kernel has denied already. For want of
// descriptors it is on every kernel.
func (t *reader) failed(s *served, errno syscall.Errno) {
	h := t.set.health
	switch {
	case isFatal(errno) && s.group.tells, errno == unix.EFAULT:
		h.readErrors.Add(1)
		h.fail(&Error{Op: "read events", Errno: errno})
	case s.group.tells && !IsScarce(errno):
		h.readErrors.Add(1)
	default:
		h.couldNotOpen(errno)
		s.unopened(0, errno)
	}
	t.rest()
}

// dispatch hands every event in buf to the handler. Each is answered and closed,
// or taken, when it returns.
func (t *reader) dispatch(s *served, buf []byte, ev *Event) {
	for len(buf) > 0 {
		m, rest, err := parseEvent(buf)
		if err != nil {
			t.set.health.malformed.Add(1)
			t.set.health.fail(err)
			return
		}
		buf = rest
		if m.fd < 0 {
			t.set.health.couldNotOpen(unix.Errno(-m.fd))
			s.unopened(int(m.pid), unix.Errno(-m.fd))
			continue
		}
		t.set.health.events.Add(1)
		ev.group, ev.meta, ev.answered, ev.taken = s.group, m, false, false
		if ev.statErr = fstat(int(m.fd), &ev.stat); ev.statErr != 0 {
			ev.stat = unix.Stat_t{} // not the file before
		}
		s.handler.HandleEvent(ev)
		ev.settle()
	}
}
