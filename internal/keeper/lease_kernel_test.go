package keeper

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// deaths is how often an agent dies in TestKernelMarkEndsBeforeLease.
const deaths = 200

// TestKernelMarkEndsBeforeLease: an agent dies while a writer waits for the lease
// under a file's mark. When the writer gets in, the mark is gone: whoever opens the
// file afterwards raises an event. Each agent has several such files, so that there is
// something between the end of the first lease and that of the last mark.
func TestKernelMarkEndsBeforeLease(t *testing.T) {
	const files = 4
	r := newRig(t)
	content := map[string]string{}
	for i := range files {
		content[fmt.Sprint(i)] = "content"
	}
	for range deaths {
		o := kerneltest.NewOverlay(t, content)
		agent, _ := startAgent(t, r.socket)
		for name := range content {
			agent.do(t, "open", o.Path(name))
		}
		agent.do(t, "guard", "key", "1h", "deny", o.Merged)
		var writers []chan error
		for name := range content {
			agent.do(t, "lease", "key", o.Path(name))
			kerneltest.Begin(o.Path(name)).WantContent(t, "content") // marked: nobody is asked
			writer := make(chan error, 1)
			go func() { writer <- writeThenOpen(o.Path(name)) }()
			writers = append(writers, writer)
		}
		r.awaitBreaks(t, "key", files)
		agent.kill()
		kerneltest.Await(t, "every writer is in, and its next open raised an event", func() bool {
			for i, writer := range writers {
				select {
				case err := <-writer:
					t.Fatalf("file %d was changed and opened without an event: %v", i, err)
				default:
				}
			}
			return r.entry("key").Pending == files
		})
		if n, err := r.dial(t).Release(); n != 1 || err != nil {
			t.Fatalf("released %d entries, %v", n, err)
		}
		for _, writer := range writers {
			if err := <-writer; err != nil {
				t.Error(err)
			}
		}
		_ = unix.Unmount(o.Merged, unix.MNT_DETACH) // it is unmounted at the end, too
	}
}

// writeThenOpen waits for its turn to write and opens the file at once.
func writeThenOpen(path string) error {
	writer, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	reader, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Close(writer), unix.Close(reader))
}

// awaitBreaks waits until n leases of an entry are being broken: by writers who wait.
func (r *rig) awaitBreaks(t *testing.T, key string, n int) {
	t.Helper()
	kerneltest.Await(t, fmt.Sprint(n, " writers wait"), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		breaking := 0
		for _, fd := range r.held[key].leases {
			kind, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
			if err != nil {
				t.Fatal(err)
			}
			if kind != unix.F_RDLCK {
				breaking++
			}
		}
		return breaking == n
	})
}
