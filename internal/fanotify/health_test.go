package fanotify

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInsist: an answer that fails is written again, a few times and no more.
func TestInsist(t *testing.T) {
	for name, tc := range map[string]struct {
		replies []syscall.Errno // the first write's included
		want    syscall.Errno
		writes  int
	}{
		"taken the second time": {[]syscall.Errno{unix.EIO, 0}, 0, 2},
		"the opener is killed":  {[]syscall.Errno{unix.EIO, unix.ENOENT}, 0, 2},
		"killed at the last":    {[]syscall.Errno{unix.EIO, unix.EIO, unix.EIO, unix.ENOENT}, 0, 4},
		"never":                 {[]syscall.Errno{unix.EIO, unix.ENOMEM, unix.EIO, unix.ENOMEM, 0}, unix.ENOMEM, 4},
	} {
		writes := 1
		got := insist(tc.replies[0], func() syscall.Errno {
			writes++
			return tc.replies[writes-1]
		})
		if got != tc.want || writes != tc.writes {
			t.Errorf("%s: %v after %d writes, want %v after %d", name, got, writes, tc.want, tc.writes)
		}
	}
}

// fullDevice is a group whose every answer fails: on a full disk.
func fullDevice(t *testing.T, r *Readers) *Group {
	t.Helper()
	fd, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := newGroup(fd)
	g.readers = r
	t.Cleanup(func() {
		g.readers = nil
		g.release()
		<-g.closed
	})
	return g
}

// TestAnswerFails: an answer that the kernel does not take is counted and told, once
// for the first, without anybody waiting for whoever listens.
func TestAnswerFails(t *testing.T) {
	r := &Readers{health: newHealth()}
	g := fullDevice(t, r)
	for range 3 {
		g.respond(7, Allow)
	}
	if n := r.Stats().FailedAnswers; n != 3 {
		t.Errorf("%d failed answers, want 3", n)
	}
	select {
	case err := <-r.Failed():
		var failed *Error
		if !errors.As(err, &failed) || failed.Errno != unix.ENOSPC {
			t.Errorf("told of %v, want ENOSPC", err)
		}
	default:
		t.Error("nobody was told")
	}
}

// TestReadFails: what a failed read means depends on the error, and on whether the
// kernel has another way to tell of files that it cannot open.
func TestReadFails(t *testing.T) {
	for _, tc := range []struct {
		errno            syscall.Errno
		tells            bool
		unopened, failed bool
	}{
		{unix.EMFILE, true, true, false},
		{unix.ENFILE, true, true, false},
		{unix.EMFILE, false, true, false},
		{unix.EIO, true, false, false},
		{unix.ENOMEM, true, false, false},
		{unix.ENOSPC, true, false, false},
		{unix.EIO, false, true, false},
		{unix.EINVAL, false, true, false}, // the file's own
		{unix.EINVAL, true, false, true},
		{unix.EBADF, true, false, true},
		{unix.EFAULT, false, false, true},
	} {
		r := &Readers{health: newHealth()}
		thread := &reader{set: r}
		var told []error
		thread.failed(&served{
			group:    &Group{tells: tc.tells},
			unopened: func(_ int, errno error) { told = append(told, errno) },
		}, tc.errno)
		st := r.Stats()
		if tc.unopened != slices.Equal(told, []error{tc.errno}) || tc.unopened != (st.Unopened[unix.ErrnoName(tc.errno)] == 1) {
			t.Errorf("%+v: told of %v, counted %v", tc, told, st.Unopened)
		}
		if tc.unopened == (st.ReadErrors == 1) {
			t.Errorf("%+v: %d other errors", tc, st.ReadErrors)
		}
		if failed := len(r.Failed()) == 1; failed != tc.failed {
			t.Errorf("%+v: fatal: %v", tc, failed)
		}
	}
}

// TestReaderRests: an error that stays does not keep a CPU busy.
func TestReaderRests(t *testing.T) {
	const times = 20
	thread := &reader{set: &Readers{health: newHealth()}}
	began := time.Now()
	for range times {
		thread.failed(&served{group: &Group{tells: true}}, unix.EIO)
	}
	if took := time.Since(began); took < (times-1)*breather {
		t.Errorf("%d errors in a row took %v: the reader spins", times, took)
	}
}

// TestReaderWithoutEpoll: a reader that has nothing to wait on says so and ends,
// instead of spinning.
func TestReaderWithoutEpoll(t *testing.T) {
	r := &Readers{health: newHealth()}
	thread := &reader{set: r, cpu: unpinned, epfd: -1}
	thread.run()
	if err := <-r.Failed(); !errors.Is(err, unix.EBADF) {
		t.Errorf("told of %v, want EBADF", err)
	}
}

// TestMalformedEventIsFatal: openers wait behind it that nobody will read of.
func TestMalformedEventIsFatal(t *testing.T) {
	r := &Readers{health: newHealth()}
	thread := &reader{set: r}
	thread.dispatch(&served{group: &Group{}}, make([]byte, metadataLen), &Event{})
	if err := <-r.Failed(); !errors.Is(err, errMalformed) || r.Stats().Malformed != 1 {
		t.Errorf("told of %v, %d counted", err, r.Stats().Malformed)
	}
}
