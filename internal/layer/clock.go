package layer

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Clock tells whether somebody has set the system's clock. Whoever can set it can
// give a file that was copied up the times that a layer's file has: from then on an
// identity that was proven to be a layer's is no proof for a container that was
// there at the time, and [Rootfs.Attribute] must be asked each time. Slewing moves
// the clock as well, but never back, and is not told.
type Clock struct {
	timer int // a timer that is cancelled when the clock is set (timerfd_create(2))
	wake  int // eventfd that ends the watch
	sets  atomic.Uint64
	done  sync.WaitGroup
}

// NewClock starts to watch. Close ends it.
func NewClock() (*Clock, error) {
	c := &Clock{}
	var err error
	if c.timer, err = unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("watch the system's clock: %w", err)
	}
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt64}}
	if err = unix.TimerfdSettime(c.timer, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err == nil {
		c.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		_ = unix.Close(c.timer)
		return nil, fmt.Errorf("watch the system's clock: %w", err)
	}
	c.done.Go(c.watch)
	return c, nil
}

// Sets returns how often the clock was set since NewClock. It never misses one that
// came before: until the watch has counted, it says one more itself. It makes one
// system call and does not allocate.
func (c *Clock) Sets() uint64 {
	before := c.sets.Load()
	if rawReadable(c.timer) {
		return before + 1
	}
	return c.sets.Load()
}

// watch counts. The timer stays readable, and Sets so notices, until the counter
// has moved.
func (c *Clock) watch() {
	fds := []unix.PollFd{{Fd: int32(c.timer), Events: unix.POLLIN}, {Fd: int32(c.wake), Events: unix.POLLIN}} //nolint:gosec // descriptors
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			c.sets.Add(1)
			var expired [8]byte
			_, _ = unix.Read(c.timer, expired[:]) // ECANCELED: and armed again
		}
	}
}

// Close ends the watch.
func (c *Clock) Close() {
	one := [8]byte{1}
	_, _ = unix.Write(c.wake, one[:])
	c.done.Wait()
	_, _ = unix.Close(c.timer), unix.Close(c.wake)
}
