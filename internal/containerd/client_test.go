package containerd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a client that ends with the test.
func client(tb testing.TB, o Options) *Client {
	tb.Helper()
	c, err := New(o)
	must(tb, err)
	tb.Cleanup(func() { must(tb, c.Close()) })
	return c
}

// socketIn returns where a containerd of the test's own listens.
func socketIn(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(tb.TempDir(), "containerd.sock")
}

// patient is longer than any answer takes that comes.
const patient = time.Minute

// playing returns a client of a containerd that has what was recorded.
func playing(tb testing.TB, s *state) *Client {
	tb.Helper()
	socket := socketIn(tb)
	s.serve(tb, socket)
	return client(tb, Options{Socket: socket, Patience: patient})
}

func wantError(tb testing.TB, err, want error, words ...string) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("%v, want %v", err, want)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			tb.Errorf("%v says nothing of %q", err, word)
		}
	}
}

// TestDefaults: nothing said means the containerd of the host and Kubernetes' namespace.
func TestDefaults(t *testing.T) {
	want := Options{Socket: "/run/containerd/containerd.sock", Namespace: "k8s.io", Patience: 2 * time.Second}
	if c := client(t, Options{}); c.o != want {
		t.Errorf("%+v, want %+v", c.o, want)
	}
}

// TestNobodyThere: without a containerd the error comes without waiting, and says what
// the system said.
func TestNobodyThere(t *testing.T) {
	c := client(t, Options{Socket: socketIn(t), Patience: patient})
	for range 3 {
		_, err := c.Probe(t.Context())
		wantError(t, err, ErrUnreachable, c.o.Socket, "start containerd")
		wantError(t, err, unix.ENOENT)
	}
}

// TestRestart: a containerd that was restarted is asked at once, however long it was
// away: the container that it starts does not wait for grpc's next attempt.
func TestRestart(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	socket := socketIn(t)
	c := client(t, Options{Socket: socket, Patience: patient})
	for range 5 {
		stop := s.serve(t, socket)
		for range 2 {
			if _, err := c.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		for range 3 {
			_, err := c.Probe(t.Context())
			wantError(t, err, ErrUnreachable)
		}
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestHangs: a containerd that takes calls and does not answer them is waited for as
// long as the patience, and no longer.
func TestHangs(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	s.hang.Store(true)
	socket := socketIn(t)
	s.serve(t, socket)
	c := client(t, Options{Socket: socket, Patience: 50 * time.Millisecond})
	for name, ask := range questions(c) {
		wantError(t, ask(t.Context()), ErrHangs, socket, "journalctl")
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// TestMute: so is one that does not even greet.
func TestMute(t *testing.T) {
	socket := socketIn(t)
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer func() { must(t, l.Close()) }()
	c := client(t, Options{Socket: socket, Patience: 50 * time.Millisecond})
	for name, ask := range questions(c) {
		wantError(t, ask(t.Context()), ErrHangs)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// TestCallerGivesUp: nobody is waited for longer than the caller says, and the error is
// the caller's.
func TestCallerGivesUp(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	s.hang.Store(true)
	c := playing(t, s)
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	for name, ask := range questions(c) {
		if err := ask(ctx); !errors.Is(err, enough) || errors.Is(err, ErrHangs) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// questions are all that can be asked.
func questions(c *Client) map[string]func(context.Context) error {
	digest := "sha256:" + strings.Repeat("0", 64)
	return map[string]func(context.Context) error{
		"Describe": func(ctx context.Context) error { _, err := c.Describe(ctx, "id"); return err },
		"Snapshot": func(ctx context.Context) error { _, err := c.Snapshot(ctx, "id"); return err },
		"Mounts":   func(ctx context.Context) error { _, err := c.Mounts(ctx, "overlayfs", "key"); return err },
		"Parent":   func(ctx context.Context) error { _, err := c.Parent(ctx, "overlayfs", "key"); return err },
		"DiffIDs":  func(ctx context.Context) error { _, err := c.DiffIDs(ctx, digest); return err },
		"Probe":    func(ctx context.Context) error { _, err := c.Probe(ctx); return err },
	}
}
