package fanotify

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tries is how often an answer is written before it counts as failed.
	tries = 4
	// breather is how long a reader rests when the same call fails again at once: an
	// error that stays must not cost a CPU.
	breather = time.Millisecond
	// errnos is above all error numbers that Linux has.
	errnos = 134
)

// Stats counts what readers met. All counts are since Start, and include those of
// readers aside.
type Stats struct {
	Events uint64 // permission events read
	// Unopened are events whose file the kernel could not open for us, which it
	// denied itself, by the name of the error (EMFILE, EAGAIN).
	Unopened map[string]uint64
	// ReadErrors are reads of a group, and waits for one, that failed otherwise.
	ReadErrors uint64
	Malformed  uint64 // reads that made no sense; always 0 on a sane kernel
	// FailedAnswers are answers that the kernel did not take although it waits for
	// them: their openers hang until the agent ends.
	FailedAnswers uint64
}

// health is what readers and groups count, and where they tell of what they cannot
// mend.
type health struct {
	events, readErrors, malformed, failedAnswers atomic.Uint64

	unopened [errnos]atomic.Uint64 // by error
	failed   chan error            // the first failure that only the agent's end mends
}

func newHealth() *health { return &health{failed: make(chan error, 1)} }

// fail tells of err, unless somebody has told of another. It never waits.
func (h *health) fail(err error) {
	select {
	case h.failed <- err:
	default:
	}
}

// answerFailed counts an answer that the kernel did not take.
func (h *health) answerFailed(errno syscall.Errno) {
	h.failedAnswers.Add(1)
	h.fail(&Error{Op: "answer an event", Errno: errno})
}

func (h *health) couldNotOpen(errno syscall.Errno) {
	h.unopened[min(errno, errnos-1)].Add(1)
}

func (h *health) stats() Stats {
	st := Stats{
		Events: h.events.Load(), ReadErrors: h.readErrors.Load(), Malformed: h.malformed.Load(),
		FailedAnswers: h.failedAnswers.Load(), Unopened: map[string]uint64{},
	}
	for errno := range h.unopened {
		if n := h.unopened[errno].Load(); n > 0 {
			st.Unopened[errnoName(syscall.Errno(errno))] = n
		}
	}
	return st
}

func errnoName(errno syscall.Errno) string {
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return "other"
}

// insist calls write again after it failed with errno, a few times at once. It
// returns 0 once the kernel has taken the answer, or does not want one any more.
func insist(errno syscall.Errno, write func() syscall.Errno) syscall.Errno {
	for range tries - 1 {
		if errno == 0 || errno == unix.ENOENT {
			return 0
		}
		errno = write()
	}
	if errno == unix.ENOENT {
		return 0
	}
	return errno
}

// isFatal reports whether a read of a group, or a wait for groups, that failed with
// errno will fail for ever: what is asked for makes no sense. All others pass.
func isFatal(errno syscall.Errno) bool {
	return errno == unix.EBADF || errno == unix.EFAULT || errno == unix.EINVAL
}

// IsScarce reports whether err is for want of descriptors.
func IsScarce(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }
