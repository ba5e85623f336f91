package lease

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// patience bounds every wait for something that must come.
const patience = 20 * time.Second

// breaker notes what it is told.
type breaker struct {
	broken, ended atomic.Int32
	during        func(fd int)
	over          chan struct{}
}

func newBreaker() *breaker { return &breaker{over: make(chan struct{}, 1)} }

func (b *breaker) Broken(fd int) {
	b.broken.Add(1)
	if b.during != nil {
		b.during(fd)
	}
}

func (b *breaker) Ended() {
	b.ended.Add(1)
	b.over <- struct{}{}
}

func newHolder(t *testing.T) *Holder {
	t.Helper()
	h, err := NewHolder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := h.Len(); n != 0 {
			t.Errorf("%d leases are held at the end", n)
		}
		h.Close()
	})
	return h
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// write appends to a file from another process, as nobody's own lease stops it.
func write(t *testing.T, path string) error {
	t.Helper()
	return exec.CommandContext(t.Context(), "sh", "-c", `printf x >>"$0"`, path).Run()
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("never told")
	}
}

// TestKernelBreak: the holder hears of a writer before it gets in, and only once.
func TestKernelBreak(t *testing.T) {
	h := newHolder(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	for name, change := range map[string]func() error{
		"append":   func() error { return write(t, o.Path("file")) },
		"truncate": func() error { return unix.Truncate(o.Path("file"), 1) },
		"open": func() error {
			return exec.CommandContext(t.Context(), "sh", "-c", `exec 3<>"$0"`, o.Path("file")).Run()
		},
	} {
		b := newBreaker()
		b.during = func(fd int) {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
				t.Errorf("%s: the writer was in before the holder let go: %d bytes, %v", name, st.Size, err)
			}
		}
		if _, err := h.Take(open(t, o.Path("file"), unix.O_RDONLY), b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := change(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wait(t, b.over)
		if b.broken.Load() != 1 || b.ended.Load() != 1 {
			t.Errorf("%s: broken %d times, ended %d times", name, b.broken.Load(), b.ended.Load())
		}
	}
	if n := h.Len(); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// TestKernelReaders: reading, and changing what is not content, breaks nothing.
func TestKernelReaders(t *testing.T) {
	h := newHolder(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	b := newBreaker()
	l, err := h.Take(open(t, o.Path("file"), unix.O_RDONLY), b)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", `cat "$0"; chmod 600 "$0"; mv "$0" "$0.2"`, o.Path("file")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if !l.Release() || b.broken.Load() != 0 {
		t.Errorf("broken %d times by readers", b.broken.Load())
	}
	if l.Release() {
		t.Error("released twice")
	}
}

// TestKernelWriters: a file that is open for writing cannot be leased, and says so.
func TestKernelWriters(t *testing.T) {
	h := newHolder(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, writer := open(t, path, unix.O_RDONLY), open(t, path, unix.O_WRONLY)
	defer unix.Close(reader)
	if busy, err := h.Writers(reader); err != nil || !busy {
		t.Errorf("with a writer: %v, %v", busy, err)
	}
	if _, err := h.Take(open(t, path, unix.O_RDONLY), newBreaker()); !errors.Is(err, ErrWriter) {
		t.Errorf("with a writer: %v", err)
	}
	if err := unix.Close(writer); err != nil {
		t.Fatal(err)
	}
	if busy, err := h.Writers(reader); err != nil || busy {
		t.Errorf("without a writer: %v, %v", busy, err)
	}
	if err := write(t, path); err != nil {
		t.Errorf("the question kept a lease: %v", err)
	}
}

// TestKernelNonBlockingWriter shows the price of a standing lease.
func TestKernelNonBlockingWriter(t *testing.T) {
	h := newHolder(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	b := newBreaker()
	if _, err := h.Take(open(t, o.Path("file"), unix.O_RDONLY), b); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Open(o.Path("file"), unix.O_WRONLY|unix.O_NONBLOCK, 0); !errors.Is(err, unix.EAGAIN) {
		_ = unix.Close(fd)
		t.Errorf("O_NONBLOCK under a lease: %v, want EAGAIN", err)
	}
	wait(t, b.over) // it broke the lease all the same
	fd, err := unix.Open(o.Path("file"), unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("the second try: %v", err)
	}
	_ = unix.Close(fd)
}

// TestKernelManyBreaks: thousands of leases, takers, givers and writers at once.
// Whatever signals are lost, every writer gets in.
func TestKernelManyBreaks(t *testing.T) {
	const files = 500
	h := newHolder(t)
	content := map[string]string{}
	for i := range files {
		content[fmt.Sprint(i)] = "content"
	}
	o := kerneltest.NewOverlay(t, content)
	// A queue this short overflows: the kernel then sends signals that name no lease.
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_SIGPENDING, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_SIGPENDING, &unix.Rlimit{Cur: 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_SIGPENDING, &was) })
	var breakers []*breaker
	for i := range files {
		b := newBreaker()
		if _, err := h.Take(open(t, o.Path(fmt.Sprint(i)), unix.O_RDONLY), b); err != nil {
			t.Fatal(err)
		}
		breakers = append(breakers, b)
	}
	var writers sync.WaitGroup
	for i := range files {
		writers.Go(func() {
			fd, err := unix.Open(o.Path(fmt.Sprint(i)), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
				return
			}
			_ = unix.Close(fd)
		})
	}
	writers.Wait()
	for i, b := range breakers {
		wait(t, b.over)
		if b.broken.Load() != 1 {
			t.Errorf("lease %d was broken %d times", i, b.broken.Load())
		}
	}
	if breaks, walks := h.Breaks(); breaks != files || walks == 0 {
		t.Errorf("%d breaks, want %d; %d walks, want some", breaks, files, walks)
	}
}

// TestKernelTakeAndBreak: a break that comes while the taker still puts things in
// place never leaves them there.
func TestKernelTakeAndBreak(t *testing.T) {
	h := newHolder(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
				_ = unix.Close(fd)
			}
		}
	})
	taken := 0
	for range 3000 {
		var placed atomic.Bool
		b := newBreaker()
		b.during = func(int) { placed.Store(false) }
		l, err := h.Take(open(t, path, unix.O_RDONLY), b)
		if errors.Is(err, ErrWriter) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		taken++
		l.With(func(int) { placed.Store(true) })
		if l.Release() {
			continue
		}
		if placed.Load() {
			t.Fatal("what was put in place outlived the lease")
		}
	}
	close(stop)
	writer.Wait()
	if taken == 0 {
		t.Error("no lease was ever taken")
	}
}
