package lease

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// breakSignal tells of breaks: a real-time signal, which queues. Go's runtime and
// the C library leave those from 36 on alone.
const breakSignal = syscall.Signal(42)

// A Holder holds leases and has the thread that hears of their breaks.
type Holder struct {
	tid      int
	signals  int // signalfd of the thread
	stopping atomic.Bool
	done     sync.WaitGroup

	mu     sync.Mutex
	leases map[int]*Lease // by descriptor

	breaks, walks atomic.Uint64
}

// NewHolder starts the thread. Close ends it, after the last lease was released.
func NewHolder() (*Holder, error) {
	h := &Holder{leases: make(map[int]*Lease)}
	started := make(chan error, 1)
	h.done.Go(func() { h.run(started) })
	if err := <-started; err != nil {
		h.done.Wait()
		return nil, err
	}
	// The thread has to get back to work without waiting for a place among those
	// that scan: a writer waits for it.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	return h, nil
}

// Close ends the thread. Leases that are still held are not told of breaks any
// more: release them before.
func (h *Holder) Close() {
	h.stopping.Store(true)
	_ = unix.Tgkill(unix.Getpid(), h.tid, breakSignal) // the thread lives until it has heard this
	h.done.Wait()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - 1)
}

// Len returns how many leases are held.
func (h *Holder) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.leases)
}

// Breaks returns how many leases were broken, and how often all were looked at
// because signals were lost.
func (h *Holder) Breaks() (breaks, walks uint64) { return h.breaks.Load(), h.walks.Load() }

func (h *Holder) forget(l *Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases[l.fd] == l {
		delete(h.leases, l.fd)
	}
}

// run is the thread. It is never given back to Go's pool: its signals are blocked.
func (h *Holder) run(started chan<- error) {
	runtime.LockOSThread()
	if err := h.prepare(); err != nil {
		started <- err
		return
	}
	defer unix.Close(h.signals)
	started <- nil
	for !h.stopping.Load() {
		fd, all, err := h.next()
		switch {
		case err != nil: // EINTR: Go's own signals
		case all:
			h.walk()
		default:
			h.mu.Lock()
			l := h.leases[fd]
			h.mu.Unlock()
			h.breakOne(l)
		}
	}
}

// prepare blocks the signals on this thread and makes their signalfd.
func (h *Holder) prepare() error {
	var set unix.Sigset_t
	for _, sig := range []syscall.Signal{breakSignal, unix.SIGIO} {
		set.Val[(sig-1)/64] |= 1 << ((sig - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		return fmt.Errorf("block the signal of lease breaks: %w", err)
	}
	var err error
	if h.signals, err = unix.Signalfd(-1, &set, unix.SFD_CLOEXEC); err != nil {
		return fmt.Errorf("signalfd for lease breaks: %w", err)
	}
	h.tid = unix.Gettid()
	return nil
}

// signalfdSize is sizeof(struct signalfd_siginfo), and signalfdFD the offset of
// ssi_fd in it; see signalfd(2).
const (
	signalfdSize = 128
	signalfdFD   = 20
)

// next waits for a signal and returns the descriptor that it is about; all says
// that it could be any.
func (h *Holder) next() (fd int, all bool, err error) {
	var info [signalfdSize]byte
	n, err := unix.Read(h.signals, info[:])
	if err != nil {
		return 0, false, err
	}
	if n != signalfdSize {
		return 0, true, nil
	}
	if syscall.Signal(binary.NativeEndian.Uint32(info[:])) == unix.SIGIO {
		return 0, true, nil
	}
	return int(int32(binary.NativeEndian.Uint32(info[signalfdFD:]))), false, nil //nolint:gosec // an int in the kernel
}

// breakOne lets a writer in. A signal can be about a lease that was released since:
// then l is nil, or a later one on a descriptor of the same number, which is lost
// for no reason.
func (h *Holder) breakOne(l *Lease) {
	if l == nil {
		return
	}
	h.forget(l)
	if l.giveWay() {
		h.breaks.Add(1)
		l.breaker.Ended()
	}
}

// walk looks for breaks whose signals were lost. A lease that is being broken
// tells what it is to become (F_GETLEASE).
func (h *Holder) walk() {
	h.walks.Add(1)
	h.mu.Lock()
	all := make([]*Lease, 0, len(h.leases))
	for _, l := range h.leases {
		all = append(all, l)
	}
	h.mu.Unlock()
	for _, l := range all {
		breaking := false
		l.With(func(fd int) {
			kind, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
			breaking = err == nil && kind != unix.F_RDLCK
		})
		if breaking {
			h.breakOne(l)
		}
	}
}
