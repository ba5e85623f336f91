package api

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
)

const nobody = 65534

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fakeBackend does what a test says.
type fakeBackend struct {
	log      *audit.Log
	status   Status
	announce func(context.Context, announce.Container) (announce.Guarded, error)
	check    func(ctx context.Context, fd int, tenant, path string) (CheckResult, error)
	verdicts Verdicts
	explain  func(container, path string) (Explanation, error)
	scan     func(context.Context, ScanRequest, func(ScanLine) error) (ScanTotals, error)
	ahead    func(paused bool) (AheadStatus, error)
	release  func(container string) (Released, error)
	nri      func(context.Context, net.Conn) error
}

func (b *fakeBackend) Announce(ctx context.Context, c announce.Container) (announce.Guarded, error) {
	return b.announce(ctx, c)
}
func (b *fakeBackend) Status(context.Context) Status { return b.status }
func (b *fakeBackend) Events() *audit.Log            { return b.log }
func (b *fakeBackend) Check(ctx context.Context, fd int, tenant, path string) (CheckResult, error) {
	return b.check(ctx, fd, tenant, path)
}

func (b *fakeBackend) Verdicts(context.Context) (Verdicts, error) { return b.verdicts, nil }

func (b *fakeBackend) Explain(_ context.Context, container, path string) (Explanation, error) {
	return b.explain(container, path)
}

func (b *fakeBackend) Scan(ctx context.Context, req ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
	return b.scan(ctx, req, emit)
}

func (b *fakeBackend) Ahead(_ context.Context, paused bool) (AheadStatus, error) {
	return b.ahead(paused)
}

func (b *fakeBackend) Release(_ context.Context, container string) (Released, error) {
	return b.release(container)
}

func (b *fakeBackend) ServeNRI(ctx context.Context, conn net.Conn) error { return b.nri(ctx, conn) }

// newBackend returns a backend that keeps 8 records.
func newBackend(t *testing.T) *fakeBackend {
	t.Helper()
	return newTalliedBackend(t, "")
}

// newTalliedBackend is newBackend with a tally.
func newTalliedBackend(t *testing.T, tally string) *fakeBackend {
	t.Helper()
	log, err := audit.NewLog(audit.Options{Keep: 8, Tally: tally})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &fakeBackend{log: log}
}

// socketPath returns a place for a socket that everyone can reach and only root
// can write to.
func socketPath(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "run", "agent.sock")
}

// serve starts a server that ends with the test and returns its socket.
func serve(t *testing.T, b Backend) string {
	t.Helper()
	path := socketPath(t)
	serveAt(t, path, newServer(t, b))
	return path
}

// newServer returns a server whose log must not tell of a panic.
func newServer(t *testing.T, b Backend) *Server {
	t.Helper()
	return NewServer(b, slog.New(slog.NewTextHandler(panicDetector{t}, nil)))
}

type panicDetector struct{ t *testing.T }

func (d panicDetector) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		d.t.Errorf("logged: %s", p)
	}
	return len(p), nil
}

func serveAt(t *testing.T, path string, s *Server) {
	t.Helper()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// dial connects to a socket without any of the client's ways.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// send writes text and descriptors in one message.
func sendRaw(t *testing.T, c *net.UnixConn, text string, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix([]byte(text), oob, nil); err != nil {
		t.Fatal(err)
	}
}

// receive reads one reply and its body.
func receive(t *testing.T, c net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// asNobody runs f on a thread of its own under another uid. The kernel notes
// that uid for sockets that f connects or listens on.
func asNobody(t *testing.T, f func() error) {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			result <- errno
			return
		}
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// A canary is a descriptor of which one can tell when its last copy is closed.
type canary struct {
	t    *testing.T
	r, w *os.File
}

func newCanary(t *testing.T) *canary {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return &canary{t, r, w}
}

func (c *canary) fd() int { return int(c.w.Fd()) }

// wantGone waits until nobody holds a copy any more.
func (c *canary) wantGone() {
	c.t.Helper()
	if err := c.w.Close(); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.r.Read(make([]byte, 1)); err != io.EOF {
		c.t.Errorf("reading the other end = %v, want EOF", err)
	}
}
