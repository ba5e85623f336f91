package fanotify_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// handlerFunc makes a Handler of a function.
type handlerFunc func(*fanotify.Event)

func (f handlerFunc) HandleEvent(ev *fanotify.Event) { f(ev) }

// gate is one group on an overlay, served until the test ends.
type gate struct {
	kerneltest.Overlay
	readers  *fanotify.Readers
	group    *fanotify.Group
	unopened atomic.Pointer[error]
}

func newGate(t *testing.T, files map[string]string, h handlerFunc) *gate {
	t.Helper()
	g := &gate{Overlay: kerneltest.NewOverlay(t, files)}
	var err error
	if g.readers, err = fanotify.Start(fanotify.DefaultReaders()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.readers.Stop)
	if g.group, err = fanotify.NewGroup(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.group.Close() })
	if err := g.readers.Add(g.group, h, func(_ int, err error) { g.unopened.Store(&err) }); err != nil {
		t.Fatal(err)
	}
	mark(t, g.group.MarkSuperblock, g.Merged, fanotify.OpOpen)
	return g
}

func mark(t *testing.T, how func(int, fanotify.Ops, string) error, path string, ops fanotify.Ops) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := how(fd, ops, path); err != nil {
		t.Fatal(err)
	}
}

func allow(ev *fanotify.Event) { ev.Answer(fanotify.Allow) }
func deny(ev *fanotify.Event)  { ev.Answer(fanotify.Deny) }

func wantRead(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("read %s: %q, %v, want %q", path, got, err, content)
	}
}

func wantDenied(t *testing.T, path string) {
	t.Helper()
	if got, err := os.ReadFile(path); !errors.Is(err, unix.EPERM) {
		t.Errorf("read %s: %q, %v, want EPERM", path, got, err)
	}
}

func TestKernelAnswers(t *testing.T) {
	files := map[string]string{"file": "content"}
	t.Run("allow", func(t *testing.T) { wantRead(t, newGate(t, files, allow).Path("file"), "content") })
	t.Run("deny", func(t *testing.T) { wantDenied(t, newGate(t, files, deny).Path("file")) })
	t.Run("first answer counts", func(t *testing.T) {
		g := newGate(t, files, func(ev *fanotify.Event) { allow(ev); deny(ev) })
		wantRead(t, g.Path("file"), "content")
	})
	t.Run("no answer denies", func(t *testing.T) {
		wantDenied(t, newGate(t, files, func(*fanotify.Event) {}).Path("file"))
	})
	t.Run("released unanswered denies", func(t *testing.T) {
		g := newGate(t, files, func(ev *fanotify.Event) { go ev.Take().Release() })
		wantDenied(t, g.Path("file"))
	})
	t.Run("taken after the answer", func(t *testing.T) {
		late := make(chan bool, 1)
		g := newGate(t, files, func(ev *fanotify.Event) {
			allow(ev)
			p := ev.Take()
			late <- p.Answer(fanotify.Deny)
			p.Release()
		})
		wantRead(t, g.Path("file"), "content")
		if <-late {
			t.Error("an event was answered twice")
		}
	})
}

// TestKernelAnswersMeetTheirOpeners lets many openers wait at once, with answers
// from other goroutines in any order, two for each event: each opener must get
// its own file's answer. Descriptor numbers are reused all the time.
func TestKernelAnswersMeetTheirOpeners(t *testing.T) {
	const names, openers, rounds = 16, 32, 60
	files := map[string]string{}
	for i := range names {
		files[strconv.Itoa(i)] = fmt.Sprint("content of ", i)
	}
	g := newGate(t, files, func(ev *fanotify.Event) {
		p := ev.Take()
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", p.Descriptor()))
		if err != nil {
			t.Error(err)
		}
		i, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			t.Error(err)
		}
		d := fanotify.Allow
		if i%2 == 1 {
			d = fanotify.Deny
		}
		go func() {
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() { p.Answer(d) })
			}
			p.Answer(d)
			p.Release()
			both.Wait()
		}()
	})
	var wg sync.WaitGroup
	for o := range openers {
		wg.Go(func() {
			for r := range rounds {
				i := (o + r) % names
				if i%2 == 1 {
					wantDenied(t, g.Path(strconv.Itoa(i)))
				} else {
					wantRead(t, g.Path(strconv.Itoa(i)), files[strconv.Itoa(i)])
				}
			}
		})
	}
	wg.Wait()
	if n := g.readers.Stats().Events; n != openers*rounds {
		t.Errorf("%d events for %d opens", n, openers*rounds)
	}
}

// TestKernelGroupOutlivesItsOwner closes a group while an event is out: the
// answer must still reach the opener, not the closed descriptor's next user.
func TestKernelGroupOutlivesItsOwner(t *testing.T) {
	taken := make(chan *fanotify.Permission, 1)
	g := newGate(t, map[string]string{"file": "content"}, func(ev *fanotify.Event) { taken <- ev.Take() })
	other, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(g.Path("file"))
		result <- err
	}()
	p := <-taken
	g.group.Close()
	g.group = other // closed by the gate's cleanup
	p.Answer(fanotify.Deny)
	p.Release()
	if err := <-result; !errors.Is(err, unix.EPERM) {
		t.Errorf("the opener got %v, want EPERM: the group was closed under the event", err)
	}
}

// TestKernelSuperblockMarkSeesEveryMount and the next show why a container's own
// filesystem gets a superblock mark: docs/kernel.md, "Marks".
func TestKernelSuperblockMarkSeesEveryMount(t *testing.T) {
	g := newGate(t, map[string]string{"file": "content"}, deny)
	for _, evade := range evasions() {
		if out, err := shell(t, evade, g.Merged); err == nil {
			t.Errorf("%s: read %q", evade, out)
		}
	}
}

func TestKernelMountMarkMissesClones(t *testing.T) {
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	g := newGate(t, nil, deny)
	mark(t, g.group.MarkMount, o.Merged, fanotify.OpOpen)
	wantDenied(t, o.Path("file"))
	for _, evade := range evasions() {
		if out, err := shell(t, evade, o.Merged); err != nil || out != "content" {
			t.Errorf("%s: %q, %v: if this kernel has learnt to see clones, docs/kernel.md must say so", evade, out, err)
		}
	}
}

// evasions read $0/file through another mount than $0.
func evasions() []string {
	return []string{
		`exec unshare --mount cat "$0/file"`,
		`exec unshare --user --map-root-user --mount cat "$0/file"`,
		`exec unshare --mount sh -c 'mount --bind "$0" /mnt && cat /mnt/file' "$0"`,
		`exec unshare --user --map-root-user --mount sh -c 'mount --bind "$0" /mnt && cat /mnt/file' "$0"`,
	}
}

func shell(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", append([]string{"-c", script}, args...)...).Output()
	return string(out), err
}

// TestKernelExecRaisesTwoEvents shows the order that saves a second scan.
func TestKernelExecRaisesTwoEvents(t *testing.T) {
	script, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []string
	g := newGate(t, map[string]string{"true": string(script)}, func(ev *fanotify.Event) {
		mu.Lock()
		seen = append(seen, fmt.Sprintf("exec=%v thread=%d", ev.Exec(), ev.TID()))
		mu.Unlock()
		allow(ev)
	})
	mark(t, g.group.MarkSuperblock, g.Merged, fanotify.OpExec)
	cmd := exec.CommandContext(t.Context(), g.Path("true"))
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprint("exec=true thread=", cmd.Process.Pid), fmt.Sprint("exec=false thread=", cmd.Process.Pid)}
	mu.Lock()
	defer mu.Unlock()
	if strings.Join(seen, "; ") != strings.Join(want, "; ") {
		t.Errorf("events %q, want %q", seen, want)
	}
}

// TestKernelPass uses a regular file, because kernels from 6.14 on (measured on
// 6.18) raise no open events for FIFOs and devices, which Pass is for.
func TestKernelPass(t *testing.T) {
	var events atomic.Int64
	behind := make(chan string, 3)
	g := newGate(t, map[string]string{"file": "content"}, func(ev *fanotify.Event) {
		events.Add(1)
		ev.Pass()
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ev.Descriptor()))
		if err != nil {
			t.Error(err)
		}
		behind <- name
	})
	for range 3 {
		wantRead(t, g.Path("file"), "content")
	}
	if n := events.Load(); n != 1 {
		t.Errorf("%d events for three opens, want the first one only", n)
	}
	if name := <-behind; name != "/dev/null" {
		t.Errorf("the agent still holds %s after Pass", name)
	}
}

// TestKernelSpecialFiles: a FIFO's two ends meet as if nobody watched, and
// devices open. If this kernel asks for them, they are passed.
func TestKernelSpecialFiles(t *testing.T) {
	var special atomic.Int64
	g := newGate(t, nil, func(ev *fanotify.Event) {
		if st, errno := ev.Stat(); errno == 0 && st.Mode&unix.S_IFMT != unix.S_IFREG {
			special.Add(1)
			ev.Pass()
			return
		}
		deny(ev)
	})
	for i := range 20 {
		name := g.Path(fmt.Sprint("fifo", i))
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"first", "second"} {
			out, err := shell(t, `echo "$1" >"$0" & cat "$0"; wait`, name, word)
			if err != nil || out != word+"\n" {
				t.Fatalf("FIFO %d: read %q, %v, want %q", i, out, err, word)
			}
		}
	}
	null := g.Path("null")
	if err := unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	wantRead(t, null, "")
	t.Logf("%d events for special files", special.Load())
}

// TestKernelWriteLease: a process that holds a write lease on its own file must
// not stall the reader that opens it.
func TestKernelWriteLease(t *testing.T) {
	g := newGate(t, map[string]string{"other": "content"}, allow)
	path := g.Path("leased")
	// The lease must be on an upper file that only its holder has open.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("no write lease on overlay: %v", err)
	}
	// SIGIO is ignored by the Go runtime; the lease is never given up by itself.
	if _, err := os.ReadFile(path); err == nil {
		t.Error("a leased file was opened although the agent could not open it")
	}
	// The opener has its denial from the kernel, perhaps before we are told.
	for g.unopened.Load() == nil && t.Context().Err() == nil {
		runtime.Gosched()
	}
	if err := *g.unopened.Load(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("unopened was told of %v, want EAGAIN", err)
	}
	wantRead(t, g.Path("other"), "content") // the reader is still there
}

func TestKernelGroupLimit(t *testing.T) {
	const knob = "/proc/sys/fs/fanotify/max_user_groups"
	before, err := os.ReadFile(knob)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(knob, before, 0) })
	if err := os.WriteFile(knob, []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		g, err := fanotify.NewGroup()
		if errors.Is(err, fanotify.ErrGroupLimit) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
	}
	t.Error("three groups with a limit of two")
}

// TestKernelEventsDoNotAllocate holds the promise of the fast path.
func TestKernelEventsDoNotAllocate(t *testing.T) {
	g := newGate(t, map[string]string{"file": "content"}, allow)
	dirfd, err := unix.Open(g.Merged, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	open := func() {
		fd, err := unix.Openat(dirfd, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	guarded := testing.AllocsPerRun(2000, open)
	before := g.readers.Stats().Events
	g.group.Close()
	g.group, err = fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	unguarded := testing.AllocsPerRun(2000, open)
	if guarded != unguarded {
		t.Errorf("an open allocates %v times guarded and %v times unguarded", guarded, unguarded)
	}
	if before < 2000 {
		t.Errorf("only %d events: the guarded opens were not guarded", before)
	}
}
