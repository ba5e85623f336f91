package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/announce"
)

func TestClientWithoutAnAgent(t *testing.T) {
	dir := t.TempDir()
	stale, file := filepath.Join(dir, "stale.sock"), filepath.Join(dir, "file")
	leaveSocket(t, stale)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, socket, want string }{
		{"no socket", filepath.Join(dir, "none.sock"), "is assayd running?"},
		{"stale socket", stale, "systemctl start assayd"},
		{"not a socket", file, "systemctl start assayd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewClient(tt.socket).Status(t.Context())
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.socket) {
				t.Errorf("Status() = %v, want ErrUnreachable with the socket and %q", err, tt.want)
			}
		})
	}
}

func TestClientWithoutPermission(t *testing.T) {
	path := serve(t, newBackend(t))
	// The thread dials itself: net.Dialer would wait on another one only for names.
	asNobody(t, func() error {
		_, err := NewClient(path).dial(context.Background())
		if err = NewClient(path).broken(context.Background(), err); !errors.Is(err, ErrUnreachable) ||
			!strings.Contains(err.Error(), "run it as root") {
			t.Errorf("error %v, want ErrUnreachable with a remedy", err)
		}
		return nil
	})
}

func TestClientIsTurnedAway(t *testing.T) {
	// The refusal of a peer is what a *announce.Refusal looks like to the client.
	b := newBackend(t)
	b.announce = func(context.Context, announce.Container) (announce.Guarded, error) {
		return announce.Guarded{}, refusef(http.StatusForbidden, "run it as root", "no")
	}
	_, err := NewClient(serve(t, b)).Announce(t.Context(), announce.Container{ID: "c", PID: 2, Rootfs: "/"})
	r, ok := errors.AsType[*announce.Refusal](err)
	if !ok || r.Message != "no" || r.Remedy != "run it as root" {
		t.Errorf("Announce() = %v, want the refusal", err)
	}
}

func TestClientSendsNothingToAForeigner(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "agent.sock")
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	var ln net.Listener
	asNobody(t, func() (err error) {
		ln, err = net.Listen("unix", path)
		return err
	})
	defer ln.Close()
	sent := make(chan string)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			sent <- err.Error()
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c)
		sent <- string(all)
	}()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = NewClient(path).Check(t.Context(), f, "")
	if !errors.Is(err, ErrForeignSocket) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "uid 65534") {
		t.Errorf("Check() = %v, want ErrForeignSocket", err)
	}
	if got := <-sent; got != "" {
		t.Errorf("the foreigner got %q", got)
	}
}

// answer listens once and sends a fixed reply to whatever comes.
func answer(t *testing.T, reply string) string {
	t.Helper()
	ln := listen(t, socketPath(t))
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, reply)
	}()
	return ln.Addr().String()
}

func TestClientHangsUpAfterACall(t *testing.T) {
	ln := listen(t, socketPath(t))
	hungUp := make(chan error)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			hungUp <- err
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
		_, err = io.Copy(io.Discard, c)
		hungUp <- err
	}()
	if _, err := NewClient(ln.Addr().String()).Status(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-hungUp; err != nil {
		t.Error(err)
	}
}

func TestClientGetsGarbage(t *testing.T) {
	const gone, ok = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	tests := []struct {
		name, reply string
		unreachable bool
		want        string
	}{
		{"nothing", "", true, "journalctl"},
		{"not HTTP", "hello\r\n\r\n", true, "malformed"},
		{"half a reply", gone, true, "unexpected EOF"},
		{"not JSON", ok + "hello", false, "same version"},
		{"another type", ok + `{"pid":"x"}`, false, "same version"},
		{"refusal without a body", "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n", false, "502 Bad Gateway"},
		{"refusal that is none", "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n[]", false, "404 Not Found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewClient(answer(t, tt.reply)).Status(t.Context())
			if err == nil || errors.Is(err, ErrUnreachable) != tt.unreachable || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Status() = %v, want %q, unreachable %v", err, tt.want, tt.unreachable)
			}
		})
	}
}

func TestNewClientDefault(t *testing.T) {
	if got := NewClient("").socket; got != DefaultSocket {
		t.Errorf("the default socket is %q", got)
	}
}
