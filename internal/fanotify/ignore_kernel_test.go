package fanotify_test

import (
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
)

// TestKernelIgnoreMarkAlone shows why no ignore mark stands without a lease: a store
// through a shared mapping does not clear it, so that the next open of the changed
// file raises no event. write(2) and truncate(2) do clear it.
func TestKernelIgnoreMarkAlone(t *testing.T) {
	var events atomic.Int32
	g := newGate(t, map[string]string{"layer": "content"}, func(ev *fanotify.Event) {
		events.Add(1)
		ev.Answer(fanotify.Allow)
	})
	if err := os.WriteFile(g.Path("born"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"layer", "born"} {
		path := g.Path(name)
		wantEvents := func(after string, want int32, content string) {
			t.Helper()
			before := events.Load()
			wantRead(t, path, content)
			if n := events.Load() - before; n != want {
				t.Errorf("%s, %s: %d events for an open, want %d", name, after, n, want)
			}
		}
		wantEvents("without a mark", 1, "content")
		ignore(t, g.group, path)
		wantEvents("marked", 0, "content")
		store(t, path, "malware")
		wantEvents("store through a mapping", 0, "malware")
		overwrite(t, path, "rewrite")
		wantEvents("write", 1, "rewrite")
		ignore(t, g.group, path)
		wantEvents("marked again", 0, "rewrite")
		if err := os.Truncate(path, 2); err != nil {
			t.Fatal(err)
		}
		wantEvents("truncate", 1, "re")
	}
}

// ignore marks a file.
func ignore(t *testing.T, g *fanotify.Group, path string) {
	t.Helper()
	fd := openFD(t, path, unix.O_RDONLY)
	defer unix.Close(fd)
	if err := g.Ignore(fd); err != nil {
		t.Fatal(err)
	}
}

// store changes a file's start through a shared mapping.
func store(t *testing.T, path, content string) {
	t.Helper()
	fd := openFD(t, path, unix.O_RDWR)
	m, err := unix.Mmap(fd, 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(m, content)
	for _, err := range []error{unix.Munmap(m), unix.Close(fd)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	fd := openFD(t, path, unix.O_WRONLY)
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte(content), 0); err != nil {
		t.Fatal(err)
	}
}

func openFD(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
