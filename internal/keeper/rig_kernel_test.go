package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// A rig is a keeper in this process.
type rig struct {
	*Server
	socket string
	ended  chan struct{}
}

func newRig(t *testing.T, options ...func(*Options)) *rig {
	t.Helper()
	o := Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test"}
	for _, set := range options {
		set(&o)
	}
	r := &rig{NewServer(o), filepath.Join(t.TempDir(), "keeper.sock"), make(chan struct{})}
	ln, err := Listen(r.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		if err := r.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

// dial connects this process to the keeper. As the agent it must not be killed: so
// entries have long grace times then.
func (r *rig) dial(t *testing.T) *Client {
	t.Helper()
	c, err := Dial(t.Context(), r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// hello makes this process the agent.
func (r *rig) hello(t *testing.T) (*Client, Absence, []Entry) {
	t.Helper()
	c := r.dial(t)
	a, entries, err := c.Hello(testLimit)
	if err != nil {
		t.Fatal(err)
	}
	return c, a, entries
}

// testLimit bounds the numbers of our descriptors.
const testLimit = 1024

// entry is what the status says of an entry.
func (r *rig) entry(key string) Held {
	st := r.status()
	for _, h := range st.Entries {
		if h.Key == key {
			return h
		}
	}
	return Held{}
}

// awaitAlone waits until the keeper has noticed that the agent is gone.
func (r *rig) awaitAlone(t *testing.T) {
	t.Helper()
	kerneltest.Await(t, "the keeper knows that the agent is gone", func() bool { return r.status().Agent == 0 })
}

func (r *rig) awaitPending(t *testing.T, key string, n int) {
	t.Helper()
	kerneltest.Await(t, fmt.Sprint(n, " events are queued"), func() bool { return r.entry(key).Pending == n })
}

func (r *rig) awaitAnswering(t *testing.T, key string) {
	t.Helper()
	kerneltest.Await(t, "the keeper answers by the fallback", func() bool { return r.entry(key).Answering })
}

// newEntry returns an entry with a marked group and this process, as its agent keeps it.
func newEntry(t *testing.T, key string, o kerneltest.Overlay) *Entry {
	t.Helper()
	e := &Entry{Key: key, Grace: time.Hour, Fallback: fanotify.Deny, State: []byte(`{"of":"` + key + `"}`)}
	t.Cleanup(e.Close)
	e.Files = append(e.Files, File{Group, groupFD(t, o)}, File{Process, pidfdOf(t, os.Getpid())})
	return e
}

// groupFD returns the only descriptor of a new group.
func groupFD(t *testing.T, o kerneltest.Overlay) int {
	t.Helper()
	group, err := markedGroup(o.Merged)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := group.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	group.Disown()
	<-group.Closed()
	return fd
}

func pidfdOf(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// descriptors counts our open descriptors.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// sameFile reports whether two descriptors are of one open file description.
func sameFile(t *testing.T, a, b int) bool {
	t.Helper()
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	differ, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno != 0 && errno != unix.EBADF { // closed since it was listed
		t.Fatal(errno)
	}
	return errno == 0 && differ == 0
}

// copies counts our descriptors, and the keeper's, of what entries have.
func copies(t *testing.T, entries ...*Entry) (n int) {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if slices.ContainsFunc(e.Files, func(f File) bool { return sameFile(t, f.FD, fd) }) {
				n++
			}
		}
	}
	return n
}

func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, ErrRefused) {
		t.Errorf("%s: %v, want a refusal", what, err)
	}
}
