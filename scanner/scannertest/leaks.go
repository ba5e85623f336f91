package scannertest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// expectNoLeaks fails the test if, after all its other cleanups, there are more
// descriptors or goroutines than now.
func expectNoLeaks(t *testing.T) {
	t.Helper()
	startPoller(t)
	running := goleak.IgnoreCurrent()
	before := descriptors(t)
	t.Cleanup(func() {
		if t.Failed() {
			return // The failure is the news; what it left behind is not.
		}
		eventually(t, "all descriptors closed", func() error {
			now := descriptors(t)
			if len(now) <= len(before) {
				return nil
			}
			return fmt.Errorf("descriptors before: %v; after: %v", before, now)
		})
		if err := goleak.Find(running); err != nil {
			t.Error(err)
		}
	})
}

// startPoller makes the Go runtime open the descriptors of its poller, which it
// keeps, before anything is counted.
func startPoller(t *testing.T) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{r, w} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// descriptors returns what the process has open, by descriptor.
func descriptors(t *testing.T) map[int]string {
	t.Helper()
	const dir = "/proc/self/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[int]string, len(entries))
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// The descriptor that listed the directory is gone by now.
		if target, err := os.Readlink(dir + e.Name()); err == nil {
			open[fd] = target
		}
	}
	return open
}

// A lentState is what must be the same of a descriptor before and after a scan.
type lentState struct {
	dev, ino     uint64
	offset       int64
	flags, cloex int
}

func describe(t *testing.T, fd int) lentState {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatalf("the lent descriptor cannot be used any more: %v", err)
	}
	offset, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	cloexec, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return lentState{dev: st.Dev, ino: st.Ino, offset: offset, flags: flags, cloex: cloexec}
}

// expectCopies returns an error unless n descriptors of this process, fd
// included, refer to the file behind fd.
func expectCopies(fd, n int) error {
	var want unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return fmt.Errorf("the lent descriptor cannot be used any more: %w", err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	copies := 0
	for _, e := range entries {
		var st unix.Stat_t
		if other, err := strconv.Atoi(e.Name()); err == nil && unix.Fstat(other, &st) == nil &&
			st.Dev == want.Dev && st.Ino == want.Ino {
			copies++
		}
	}
	if copies != n {
		return fmt.Errorf("%d descriptors refer to the lent file, want %d", copies, n)
	}
	return nil
}

// eventually waits until ok returns nil, or fails after the time for settling.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(settling)
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: %v", what, err)
		}
	}
}
