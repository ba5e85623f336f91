package lease

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrWriter says that somebody has the file open for writing.
var ErrWriter = errors.New("the file is open for writing")

// A Breaker is what a lease is for. Its methods are called on the thread that hears
// of breaks, one after another.
type Breaker interface {
	// Broken says that somebody wants to write to the leased file fd, and waits. When
	// it returns, the writer is let in. It is called once at most, never during
	// [Lease.With] and never after [Lease.Release], and must not call either.
	Broken(fd int)
	// Ended says that the writer was let in, after Broken.
	Ended()
}

// A Lease is a read lease on an open file. It is given up by Release, or broken.
type Lease struct {
	holder  *Holder
	fd      int
	breaker Breaker

	mu    sync.Mutex
	ended bool
}

// Take takes a read lease on the open file fd, and fd itself, whatever comes of it:
// the descriptor is closed when the lease ends, or cannot be had. It returns
// ErrWriter if the file has a writer, and another error where the filesystem has no
// leases. Breaks that come before Take returns are told, too.
func (h *Holder) Take(fd int, b Breaker) (*Lease, error) {
	l := &Lease{holder: h, fd: fd, breaker: b}
	// A signal about an earlier lease on this number must find a whole lease.
	l.mu.Lock()
	defer l.mu.Unlock()
	h.mu.Lock()
	h.leases[fd] = l
	h.mu.Unlock()
	err := own(fd, h.tid, breakSignal)
	if err == nil {
		err = setLease(fd, unix.F_RDLCK)
	}
	if err != nil {
		h.forget(l)
		l.end()
		return nil, asError(err)
	}
	return l, nil
}

// Writers reports whether the open file fd has a writer, by taking a lease for a
// moment. A writer that opens the file in this moment waits, or with O_NONBLOCK
// fails with EAGAIN. The error says that the filesystem cannot tell.
func (h *Holder) Writers(fd int) (bool, error) {
	// Owned by the thread, which does not know the descriptor: so the signal of a
	// break in this moment does not go to the whole process.
	if err := own(fd, h.tid, breakSignal); err != nil {
		return true, fmt.Errorf("owner of the lease: %w", err)
	}
	switch err := asError(setLease(fd, unix.F_RDLCK)); {
	case errors.Is(err, ErrWriter):
		return true, nil
	case err != nil:
		return true, err
	}
	if err := setLease(fd, unix.F_UNLCK); err != nil {
		return true, fmt.Errorf("give back the lease: %w", err)
	}
	return false, nil
}

// asError names what the kernel says about a lease.
func asError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN):
		return ErrWriter
	}
	return fmt.Errorf("take a read lease: %w", err)
}

// giveWay lets the writer in, unless the lease has ended, and reports whether it did.
func (l *Lease) giveWay() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.breaker.Broken(l.fd)
	return l.end()
}

// Release gives the lease up, unless it was broken, and reports whether it did.
func (l *Lease) Release() bool {
	l.holder.forget(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end()
}

// end gives back lease and descriptor, once. The caller holds l.mu.
func (l *Lease) end() bool {
	if l.ended {
		return false
	}
	l.ended = true
	_ = setLease(l.fd, unix.F_UNLCK) // closing would do as well
	_ = unix.Close(l.fd)
	return true
}

// With calls f with the leased descriptor, unless the lease has ended, and reports
// whether it did. The lease does not end meanwhile: f must not block.
func (l *Lease) With(f func(fd int)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	f(l.fd)
	return true
}
