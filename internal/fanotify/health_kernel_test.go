package fanotify_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelPending: events that nobody reads are counted.
func TestKernelPending(t *testing.T) {
	const openers = 3
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	pending := func(want int) {
		t.Helper()
		n, err := group.Pending()
		for ; err == nil && n != want && t.Context().Err() == nil; n, err = group.Pending() {
			runtime.Gosched()
		}
		if err != nil || n != want {
			t.Fatalf("%d events are pending, %v, want %d", n, err, want)
		}
	}
	mark(t, group.MarkSuperblock, o.Merged, fanotify.OpOpen)
	pending(0)
	var waiting []*exec.Cmd
	for range openers {
		cmd := exec.CommandContext(t.Context(), "cat", o.Path("file"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, cmd)
	}
	pending(openers)
	group.Close() // lets them through
	for _, cmd := range waiting {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if n, err := group.Pending(); err == nil {
		t.Errorf("a closed group has %d events", n)
	}
}

// TestKernelNoDescriptorLeft: without a descriptor for the event's file the opener is
// denied by the kernel, that is counted by its reason and told, and when there are
// descriptors again the next opener gets its file.
func TestKernelNoDescriptorLeft(t *testing.T) {
	g := newGate(t, map[string]string{"file": "content"}, allow)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `read go; cat "$0"`, g.Path("file"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, werr := stdin.Write([]byte("go\n"))
	for g.unopened.Load() == nil && t.Context().Err() == nil {
		runtime.Gosched()
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || werr != nil {
		t.Errorf("the opener got its file, %v, although there was no descriptor for it", werr)
	}
	if n := g.readers.Stats().Unopened["EMFILE"]; n == 0 || !errors.Is(*g.unopened.Load(), unix.EMFILE) {
		t.Errorf("told of %v, %d times for want of descriptors", *g.unopened.Load(), n)
	}
	if got, err := os.ReadFile(g.Path("file")); err != nil || string(got) != "content" {
		t.Errorf("the next opener got %q, %v", got, err)
	}
}
