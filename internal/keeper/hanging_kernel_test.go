package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelHangingGroup: a keeper whose reader hangs in a FUSE filesystem with a
// group's event does not hold up the next agent, which does not get that group.
func TestKernelHangingGroup(t *testing.T) {
	source, volume := t.TempDir(), t.TempDir()
	for _, name := range []string{"file", "other"} {
		if err := os.WriteFile(source+"/"+name, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := kerneltest.ServeFUSE(t, source, volume)
	for _, name := range []string{"file", "other"} {
		kerneltest.Begin(volume+"/"+name).WantContent(t, "content") // so that its attributes are known
	}
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	r := newRig(t)
	e := newEntry(t, "key", o)
	group, err := markedGroup(volume)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := group.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	group.Disown()
	e.Files = append(e.Files, File{Aside, fd})
	c, _, _ := r.hello(t)
	if err := c.Keep(e); err != nil {
		t.Fatal(err)
	}
	r.setGrace("key", time.Millisecond)
	c.Close()
	e.Close() // the agent has ended
	r.awaitAnswering(t, "key")
	r.setGrace("key", time.Hour)
	if err := server.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kerneltest.Await(t, "the FUSE server has stopped", func() bool { return stopped(t, server.Pid) })
	hangs := kerneltest.Begin(volume + "/file")
	kerneltest.Await(t, "the keeper's reader hangs", func() bool { return r.turn("key", Aside)%2 == 1 })
	var queued []*kerneltest.Opener
	for range 8 { // more than one read takes
		queued = append(queued, kerneltest.Begin(volume+"/other"))
	}
	r.awaitPending(t, "key", len(queued))

	c, _, entries := r.hello(t)
	if len(entries) != 1 || entries[0].Take(Aside) >= 0 {
		t.Fatalf("the agent was given %+v, want no group whose event another has in hand", entries)
	}
	adopted, err := fanotify.AdoptGroup(entries[0].Take(Group))
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	entries[0].Close()
	opener := kerneltest.Begin(o.Path("file"))
	r.awaitPending(t, "key", 1)
	opener.WantWaits(t)
	hangs.WantWaits(t)
	if err := server.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	hangs.WantError(t, unix.EPERM)
	for _, opener := range queued {
		opener.WantError(t, unix.EPERM)
	}
	kerneltest.Await(t, "the marks of the group are gone", func() bool {
		got, err := os.ReadFile(volume + "/other")
		return err == nil && string(got) == "content"
	})
	if err := c.Forget("key"); err != nil {
		t.Fatal(err)
	}
	readers, err := fanotify.StartAside()
	if err != nil {
		t.Fatal(err)
	}
	defer readers.Stop()
	if err := readers.Add(adopted, handlerFunc(func(ev *fanotify.Event) { ev.Answer(fanotify.Allow) }), func(int, error) {}); err != nil {
		t.Fatal(err)
	}
	opener.WantContent(t, "content")
}

// stopped reports whether every thread of a process has stopped.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		t.Fatalf("threads of the server: %v, %v", stats, err)
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil || !bytes.Contains(text, []byte(") T ")) {
			return false
		}
	}
	return true
}

// turn is what the keeper's reader of a group is at: odd while it is at work.
func (r *rig) turn(key string, kind Kind) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.held[key].groups {
		if g.kind == kind && g.readers != nil {
			return g.readers.Turns()[0]
		}
	}
	return 0
}
