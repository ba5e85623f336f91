package clamd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestPoolBound: no more scans at once than there are connections, and no more
// connections than that and the refresher's.
func TestPoolBound(t *testing.T) {
	const connections, scans = 2, 12
	var at, most atomic.Int64
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		now := at.Add(1)
		defer at.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		return c.clean(id, stream)
	})
	s := newScanner(t, Options{Address: f.address, Connections: connections, RefreshInterval: time.Hour})
	var all sync.WaitGroup
	for range scans {
		file := plain(t)
		all.Go(func() { wantOutcome(t, s.Scan(t.Context(), file), scanner.Clean) })
	}
	all.Wait()
	if most.Load() > connections || f.mostAlive.Load() > connections+1 {
		t.Errorf("%d scans at once on %d connections, want at most %d", most.Load(), f.mostAlive.Load(), connections)
	}
	if n := f.accepted.Load(); n > connections+1 {
		t.Errorf("%d connections for %d scans: they are not kept", n, scans)
	}
}

// TestWaitForSlot: waiting for a connection ends with the context, and with the
// scanner.
func TestWaitForSlot(t *testing.T) {
	h := hung(t, "unix")
	s, ok := h.Scanner.(*Scanner)
	if !ok {
		t.Fatalf("a hung %T", h.Scanner)
	}
	var all sync.WaitGroup
	for range cap(s.pool.slots) {
		all.Go(func() { wantOutcome(t, s.Scan(t.Context(), h.File), scanner.Error) })
		<-h.Started
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if v := s.Scan(ctx, plain(t)); !errors.Is(v.Err, context.DeadlineExceeded) {
		t.Errorf("context ended while it waited: %+v", v)
	}
	waiting := plain(t)
	all.Go(func() {
		if v := s.Scan(t.Context(), waiting); !errors.Is(v.Err, scanner.ErrUnavailable) {
			t.Errorf("closed while it waited: %+v", v)
		}
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
}

// TestClosed: nothing is asked any more.
func TestClosed(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := f.accepted.Load()
	file := plain(t)
	for range 100 {
		if v := s.Scan(t.Context(), file); v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrUnavailable) {
			t.Fatalf("got %+v, want an error that wraps %q", v, scanner.ErrUnavailable)
		}
		if err := s.Health(t.Context()); !errors.Is(err, errClosed) {
			t.Fatalf("Health: %v, want %v", err, errClosed)
		}
	}
	if n := f.accepted.Load(); n != before {
		t.Errorf("%d new connections", n-before)
	}
}

// TestDoneContextComesFirst: even where clamd is not needed for the verdict.
func TestDoneContextComesFirst(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address, MaxFileSize: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v := s.Scan(ctx, plain(t)); !errors.Is(v.Err, context.Canceled) {
		t.Errorf("got %+v, want an error that wraps %q", v, context.Canceled)
	}
}

// TestCancelledSessionIsNotReused: a late reply must not answer the next scan.
func TestCancelledSessionIsNotReused(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	f := startFake(t, "unix", func(c *fakeConn, id int, _ bool) error {
		if c.clamd.scans.Load() > 1 {
			return c.say("%d: fd[7]: Second.File FOUND\x00", id)
		}
		close(started)
		<-release
		return c.say("%d: fd[7]: OK\x00%d: fd[7]: OK\x00", id, id+2)
	})
	s := newScanner(t, Options{Address: f.address, Connections: 1})
	ctx, cancel := context.WithCancel(t.Context())
	file := plain(t)
	got := make(chan scanner.Verdict)
	go func() { got <- s.Scan(ctx, file) }()
	<-started
	cancel()
	if v := <-got; !errors.Is(v.Err, context.Canceled) {
		t.Errorf("cancelled: %+v", v)
	}
	close(release)
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Malicious)
}

func TestGenerationChangesInScan(t *testing.T) {
	const next = "ClamAV 1.4.6/27001/Fri Jan  2 00:00:00 2026"
	var asked atomic.Pointer[Scanner]
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		version := next
		c.clamd.version.Store(&version)
		err := wait(func() error {
			if asked.Load().Generation() != next {
				return errors.New("the refresher has not asked again")
			}
			return nil
		})
		return errors.Join(err, c.clean(id, stream))
	})
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Millisecond})
	asked.Store(s)
	if v := s.Scan(t.Context(), plain(t)); v != (scanner.Verdict{Outcome: scanner.Clean}) {
		t.Errorf("got %+v, want clean without generation and mark", v)
	}
	if v := s.Scan(t.Context(), plain(t)); v != scanner.CleanVerdict(next) {
		t.Errorf("got %+v, want clean and marked under %q", v, next)
	}
}

func TestGenerationUnknown(t *testing.T) {
	for _, version := range []string{"ClamAV 1.4.6", "COMMAND UNAVAILABLE"} {
		t.Run(version, func(t *testing.T) {
			f := startFake(t, "unix", nil)
			f.version.Store(&version)
			s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Millisecond})
			for range 3 {
				if v := s.Scan(t.Context(), plain(t)); v != (scanner.Verdict{Outcome: scanner.Clean}) {
					t.Errorf("got %+v, want clean without generation and mark", v)
				}
			}
			if gen := s.Generation(); gen != "" {
				t.Errorf("generation %q", gen)
			}
		})
	}
}

func TestGenerationAfterReconnect(t *testing.T) {
	for _, interval := range []time.Duration{time.Millisecond, time.Hour} {
		t.Run(interval.String(), func(t *testing.T) {
			f := startFake(t, "unix", nil)
			s := newScanner(t, Options{Address: f.address, RefreshInterval: interval})
			known(t, s)
			next := strings.Replace(fakeVersion, "27000", "27001", 1)
			f.version.Store(&next)
			f.hangUp()
			if interval == time.Hour { // The refresher will not notice; a scan does.
				wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
			}
			eventually(t, func() error {
				if gen := s.Generation(); gen != scanner.Generation(next) {
					return fmt.Errorf("generation is %q", gen)
				}
				return nil
			})
		})
	}
}

// TestChangedFile: clamd says OK to a file that changes while it reads it, so the
// driver streams it.
func TestChangedFile(t *testing.T) {
	content := []byte("twenty-odd bytes of content")
	found := func(about string) script {
		return func(c *fakeConn, id int, _ bool) error { return c.answer(id, true, about) }
	}
	touch := func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) }
	for _, c := range []struct {
		name   string
		change func(path string) error
		stream script
		want   scanner.Verdict
		err    error
	}{
		{name: "untouched", want: scanner.CleanVerdict(fakeVersion)},
		{name: "touched", change: touch, stream: found("OK"), want: scanner.Verdict{Outcome: scanner.Clean, Generation: fakeVersion}},
		{name: "touched, malicious", change: touch, stream: found("A.B FOUND"), want: scanner.Verdict{Outcome: scanner.Malicious, Signature: "A.B", Generation: fakeVersion}},
		{name: "shrunk to nothing", change: func(path string) error { return os.Truncate(path, 0) }, err: scanner.ErrRead},
		{name: "shrunk", change: func(path string) error { return os.Truncate(path, 1) }, err: scanner.ErrRead},
		{name: "grown", change: func(path string) error { return os.Truncate(path, 40) }, stream: found("OK"), want: scanner.Verdict{Outcome: scanner.Clean, Generation: fakeVersion}},
		{name: "grown too large", change: func(path string) error { return os.Truncate(path, 51) }, want: scanner.UnscannableVerdict(scanner.ReasonTooLarge, fakeVersion)},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, path := scannertest.TempFile(t, content)
			f := startFake(t, "unix", func(conn *fakeConn, id int, stream bool) error {
				if stream && c.stream != nil {
					return c.stream(conn, id, stream)
				}
				if !stream && c.change != nil {
					if err := c.change(path); err != nil {
						t.Error(err)
					}
				}
				return conn.clean(id, stream)
			})
			s := newScanner(t, Options{Address: f.address, MaxFileSize: 50})
			v := s.Scan(t.Context(), file)
			if c.err != nil {
				if v.Outcome != scanner.Error || !errors.Is(v.Err, c.err) {
					t.Errorf("got %+v, want an error that wraps %q", v, c.err)
				}
			} else if v != c.want {
				t.Errorf("got %+v, want %+v", v, c.want)
			}
		})
	}
}

// TestShrunkStream: over TCP, a file that ends before the size that it had.
func TestShrunkStream(t *testing.T) {
	f := startFake(t, "tcp", nil)
	c, _, err := openSession(t.Context(), "tcp", f.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	src := source{fd: plain(t).FD, begin: state{size: 1000}, limit: -1}
	if got, err := c.streamFile(src); !errors.Is(err, scanner.ErrRead) || c.reusable() {
		t.Errorf("got %+v, %v, session reusable: %v; want an error that wraps %q", got, err, c.reusable(), scanner.ErrRead)
	}
}

// TestSaidToBeLarger: the lender saw more than is there now.
func TestSaidToBeLarger(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address})
	file := plain(t)
	file.Size++
	if v := s.Scan(t.Context(), file); v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrRead) {
		t.Errorf("got %+v, want an error that wraps %q", v, scanner.ErrRead)
	}
}

// TestOffset: clamd moves the offset that it shares with the lent descriptor.
func TestOffset(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		if _, err := unix.Seek(c.fd, 1, unix.SEEK_SET); err != nil {
			t.Error(err)
		}
		return c.clean(id, stream)
	})
	s := newScanner(t, Options{Address: f.address})
	file := plain(t)
	if _, err := unix.Seek(file.FD, 5, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, s.Scan(t.Context(), file), scanner.Clean)
	if at, err := unix.Seek(file.FD, 0, unix.SEEK_CUR); err != nil || at != 5 {
		t.Errorf("offset %d, %v; want 5", at, err)
	}
}

// TestArchiveIsStreamed: clamd opens a RAR archive by its name.
func TestArchiveIsStreamed(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	if n := f.streams.Load(); n != 0 {
		t.Errorf("%d plain files streamed over a unix socket", n)
	}
	wantOutcome(t, s.Scan(t.Context(), scannertest.FileOf(t, []byte(rarMagic+"\x01\x00"))), scanner.Clean)
	if n := f.streams.Load(); n != 1 {
		t.Errorf("%d archives streamed, want 1", n)
	}
}

func TestNotAFile(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address})
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	device, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for name, fd := range map[string]int{"directory": int(dir.Fd()), "device": int(device.Fd()), "closed": -1} {
		if v := s.Scan(t.Context(), &scanner.File{FD: fd}); v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrRead) {
			t.Errorf("%s: got %+v, want an error that wraps %q", name, v, scanner.ErrRead)
		}
	}
	if n := f.scans.Load(); n != 0 {
		t.Errorf("%d scans", n)
	}
}

func TestIdleSessionsExpire(t *testing.T) {
	f := startFake(t, "unix", nil)
	s := newScanner(t, Options{Address: f.address, IdleTimeout: time.Millisecond, RefreshInterval: time.Millisecond})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	eventually(t, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := len(f.conns); n != 1 {
			return fmt.Errorf("%d connections, want the refresher's only", n)
		}
		return nil
	})
}

func TestUselessSessionIsNotKept(t *testing.T) {
	p := newPool(1, time.Hour)
	f := startFake(t, "unix", nil)
	c, _, err := openSession(t.Context(), "unix", f.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.put(c)
	if got := p.take(); got != c {
		t.Fatalf("a session in order is not kept: %v", got)
	}
	c.id = maxCommands
	p.put(c)
	if got := p.pop(); got != nil {
		t.Error("a worn session is kept")
	}
	c.id = 1
	p.close()
	p.put(c)
	if got := p.pop(); got != nil {
		t.Error("a session is kept in a closed pool")
	}
	s := newScanner(t, Options{Address: f.address})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.bind(ended, c)()
	if got := s.pool.pop(); got != nil {
		t.Error("a session is kept that ends with its context")
	}
}
