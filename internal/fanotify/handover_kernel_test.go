package fanotify_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelAdoptGroup: what is no group is refused, and closed all the same.
func TestKernelAdoptGroup(t *testing.T) {
	null := openFD(t, "/dev/null", unix.O_RDONLY)
	if _, err := fanotify.AdoptGroup(null); err == nil {
		t.Error("/dev/null was taken for a group")
	}
	if _, err := unix.FcntlInt(uintptr(null), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the descriptor that was refused is still open: %v", err)
	}
	if _, err := fanotify.AdoptGroup(-1); err == nil {
		t.Error("-1 was taken for a group")
	}
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	group := markedGroup(t, o)
	fd := duplicate(t, group)
	group.Close() // takes the marks away: they are the group's, not the descriptor's
	adopted, err := fanotify.AdoptGroup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	wantRead(t, o.Path("file"), "content")
	mark(t, adopted.MarkSuperblock, o.Merged, fanotify.OpOpen)
	serve(t, adopted, deny)
	wantDenied(t, o.Path("file"))
}

// TestKernelSettle: an opener whose event was read by a process that died waits for
// as long as the group lives, and is answered by Settle; those that nobody has read
// are the next reader's.
func TestKernelSettle(t *testing.T) {
	for name, answer := range map[string]fanotify.Decision{"deny": fanotify.Deny, "allow": fanotify.Allow} {
		t.Run(name, func(t *testing.T) {
			o := kerneltest.NewOverlay(t, map[string]string{"read": "content", "unread": "content"})
			group := markedGroup(t, o)
			defer group.Close()
			reader := startReader(t, group)
			read := kerneltest.Begin(o.Path("read"))
			reader.awaitEvent(t)
			reader.kill(t)
			unread := kerneltest.Begin(o.Path("unread"))
			awaitPending(t, group, 1)

			if n := group.Settle(3, answer); n != 0 {
				t.Errorf("settled %d events with numbers of standard streams", n)
			}
			read.WantWaits(t)
			if n := group.Settle(1024, answer); n != 1 {
				t.Errorf("settled %d events, want the one that was read", n)
			}
			if answer == fanotify.Allow {
				read.WantContent(t, "content")
			} else {
				read.WantError(t, unix.EPERM)
			}
			unread.WantWaits(t)
			if n, err := group.Pending(); n != 1 || err != nil {
				t.Errorf("%d events are queued after Settle, %v, want 1", n, err)
			}
			serve(t, group, allow)
			unread.WantContent(t, "content")
		})
	}
}

// TestKernelSettleOneNumber: events that processes left behind under one number of a
// descriptor, one after the other, are all answered.
func TestKernelSettleOneNumber(t *testing.T) {
	o := kerneltest.NewOverlay(t, map[string]string{"first": "content", "second": "content"})
	group := markedGroup(t, o)
	defer group.Close()
	var openers []*kerneltest.Opener
	for _, name := range []string{"first", "second"} {
		reader := startReader(t, group) // it opens what the one before has opened
		openers = append(openers, kerneltest.Begin(o.Path(name)))
		reader.awaitEvent(t)
		reader.kill(t)
	}
	if n := group.Settle(1024, fanotify.Deny); n != 2 {
		t.Errorf("settled %d events, want both", n)
	}
	for _, opener := range openers {
		opener.WantError(t, unix.EPERM)
	}
}

// TestKernelRemove: readers that are told to leave a group alone do, and say so only
// when none has to do with it any more.
func TestKernelRemove(t *testing.T) {
	o := kerneltest.NewOverlay(t, map[string]string{"first": "content", "second": "content"})
	group := markedGroup(t, o)
	defer group.Close()
	entered, leave := make(chan struct{}), make(chan struct{})
	var left atomic.Bool
	readers := serve(t, group, func(ev *fanotify.Event) {
		close(entered)
		<-leave
		ev.Answer(fanotify.Allow)
		left.Store(true)
	})
	first := kerneltest.Begin(o.Path("first"))
	<-entered
	if readers.Remove(group, 10*time.Millisecond) {
		t.Error("the group is free, says Remove, while a reader hangs with an event of it")
	}
	first.WantWaits(t)
	free := make(chan bool, 1)
	go func() { free <- readers.Remove(group, time.Minute) && left.Load() }()
	close(leave)
	if !<-free {
		t.Error("Remove did not wait for the reader at work")
	}
	first.WantContent(t, "content")

	second := kerneltest.Begin(o.Path("second")) // the handler would close entered twice
	awaitPending(t, group, 1)
	second.WantWaits(t)
	serve(t, group, deny)
	second.WantError(t, unix.EPERM)
}

// TestKernelDisown: who gives a group up leaves marks and openers to whoever has
// another descriptor of it.
func TestKernelDisown(t *testing.T) {
	o := kerneltest.NewOverlay(t, map[string]string{"before": "content", "after": "content"})
	group := markedGroup(t, o)
	fd := duplicate(t, group)
	before := kerneltest.Begin(o.Path("before"))
	awaitPending(t, group, 1)
	group.Disown()
	<-group.Closed()
	if _, err := group.Pending(); err == nil {
		t.Error("a group that was given up can be asked")
	}
	if _, err := group.Duplicate(); err == nil {
		t.Error("a group that was given up can be duplicated")
	}
	next, err := fanotify.AdoptGroup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	after := kerneltest.Begin(o.Path("after"))
	awaitPending(t, next, 2)
	before.WantWaits(t)
	serve(t, next, deny)
	before.WantError(t, unix.EPERM)
	after.WantError(t, unix.EPERM)
	if n, err := next.Pending(); n != 0 || err != nil {
		t.Errorf("%d events are queued when all were read, %v", n, err)
	}
}

// markedGroup returns a group that nobody reads, marked on an overlay.
func markedGroup(t *testing.T, o kerneltest.Overlay) *fanotify.Group {
	t.Helper()
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	mark(t, group.MarkSuperblock, o.Merged, fanotify.OpOpen)
	return group
}

func duplicate(t *testing.T, g *fanotify.Group) int {
	t.Helper()
	fd, err := g.Duplicate()
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// serve serves a group until the test ends.
func serve(t *testing.T, g *fanotify.Group, h handlerFunc) *fanotify.Readers {
	t.Helper()
	readers, err := fanotify.Start(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	if err := readers.Add(g, h, func(int, error) {}); err != nil {
		t.Fatal(err)
	}
	return readers
}

// awaitPending waits until n events are queued.
func awaitPending(t *testing.T, g *fanotify.Group, n int) {
	t.Helper()
	kerneltest.Await(t, fmt.Sprint(n, " events are queued"), func() bool {
		got, err := g.Pending()
		if err != nil {
			t.Fatal(err)
		}
		return got == n
	})
}

// readerVariable makes a test binary a reader of the group that is its descriptor 3.
const readerVariable = "ASSAY_TEST_READER"

// A reader is a process that reads events and answers none.
type reader struct {
	cmd    *exec.Cmd
	events *bufio.Scanner
}

func startReader(t *testing.T, g *fanotify.Group) *reader {
	t.Helper()
	fd := os.NewFile(uintptr(duplicate(t, g)), "group")
	defer fd.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), readerVariable+"=1")
	cmd.ExtraFiles = []*os.File{fd}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &reader{cmd, bufio.NewScanner(out)}
}

// awaitEvent returns when the process has read an event.
func (r *reader) awaitEvent(t *testing.T) {
	t.Helper()
	if !r.events.Scan() || r.events.Text() != "event" {
		t.Fatalf("the reader said %q, %v", r.events.Text(), r.events.Err())
	}
}

func (r *reader) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = r.cmd.Wait() // killed
}

// readOnly is the reader's process. It ends when it is killed.
func readOnly(out io.Writer) error {
	group, err := fanotify.AdoptGroup(3)
	if err != nil {
		return err
	}
	readers, err := fanotify.StartAside()
	if err != nil {
		return err
	}
	events := make(chan *fanotify.Permission)
	take := handlerFunc(func(ev *fanotify.Event) { events <- ev.Take() })
	if err := readers.Add(group, take, func(int, error) {}); err != nil {
		return err
	}
	for range events {
		if _, err := fmt.Fprintln(out, "event"); err != nil {
			return err
		}
	}
	return nil
}
