package api

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
)

// runtimeEnd returns the two ends of a runtime's connection: the runtime's, and the
// one that it names to a plugin.
func runtimeEnd(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "runtime"), os.NewFile(uintptr(fds[1]), "plugin")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); theirs.Close() })
	return conn, theirs
}

func TestServeNRI(t *testing.T) {
	b := newBackend(t)
	b.nri = func(_ context.Context, conn net.Conn) error {
		_, err := io.WriteString(conn, "registered")
		return errors.Join(err, conn.Close())
	}
	runtime, plugin := runtimeEnd(t)
	if err := NewClient(serve(t, b)).ServeNRI(t.Context(), plugin); err != nil {
		t.Fatal(err)
	}
	if err := plugin.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(runtime); err != nil || string(got) != "registered" {
		t.Errorf("the runtime got %q, error %v", got, err)
	}
}

// The agent's end ends it, and so does the launcher's.
func TestServeNRIEnds(t *testing.T) {
	b := newBackend(t)
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	b.nri = func(ctx context.Context, conn net.Conn) error {
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return errors.Join(ctx.Err(), conn.Close())
	}
	_, plugin := runtimeEnd(t)
	path := socketPath(t)
	s := newServer(t, b)
	serveAt(t, path, s)

	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- NewClient(path).ServeNRI(ctx, plugin) }()
	<-began
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a launcher that is ended: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the backend: %v", err)
	}

	go func() { left <- NewClient(path).ServeNRI(t.Context(), plugin) }()
	<-began
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-left; err != nil {
		t.Errorf("an agent that ends: %v", err)
	}
}

func TestServeNRIRefuses(t *testing.T) {
	b := newBackend(t)
	b.nri = func(context.Context, net.Conn) error {
		t.Error("the backend was asked")
		return nil
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	inet, err := udp.(*net.UDPConn).File() //nolint:errcheck // it is one
	if err != nil {
		t.Fatal(err)
	}
	defer inet.Close()
	client := NewClient(serve(t, b))
	for name, f := range map[string]*os.File{"a file": file, "another kind of socket": inet, "nothing": nil} {
		err := client.ServeNRI(t.Context(), f)
		if refusal, ok := errors.AsType[*announce.Refusal](err); !ok || refusal.Remedy == "" {
			t.Errorf("%s: error %v, want a refusal with a remedy", name, err)
		}
	}
}
