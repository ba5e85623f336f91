package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, path string) *Listener {
	t.Helper()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// leaveSocket leaves a socket on which nobody listens.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenMakesAPrivateSocket(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(socketPath(t), "deeper", "agent.sock")
	ln := listen(t, path)
	for p, want := range map[string]fs.FileMode{
		path: fs.ModeSocket | 0o600, path + ".lock": 0o600, filepath.Dir(path): fs.ModeDir | 0o755,
	} {
		if info, err := os.Lstat(p); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", p, info.Mode(), err, want)
		}
	}
	if got := ln.Addr().String(); got != path {
		t.Errorf("Addr() = %q, want %q", got, path)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}
	listen(t, path)
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "agent.sock")
	leaveSocket(t, path)
	listen(t, path)
	dial(t, path)
}

func TestListenRefusesASecondAgent(t *testing.T) {
	path := socketPath(t)
	first := listen(t, path)
	before := countDescriptors(t)
	_, err := Listen(path)
	if after := countDescriptors(t); after != before {
		t.Errorf("%d descriptors before the refusal, %d after", before, after)
	}
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) ||
		!strings.Contains(err.Error(), "systemctl stop assayd") {
		t.Errorf("second Listen = %v, want ErrInUse with the pid and a remedy", err)
	}
	dial(t, path) // the first is unharmed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
}

func TestListenRefusesALivingForeigner(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "agent.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("Listen = %v, want ErrInUse", err)
	}
	dial(t, path)
}

func TestListenRefusesUnsafePlaces(t *testing.T) {
	mkdir := func(t *testing.T, dir string, mode fs.FileMode, uid int) {
		t.Helper()
		err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, uid, -1), os.Chmod(dir, mode))
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir, path string) string // returns the path to listen on
		want    string
	}{
		{"relative path", func(*testing.T, string, string) string { return "agent.sock" }, "absolute path"},
		{"path too long", func(_ *testing.T, dir, _ string) string {
			return filepath.Join(dir, strings.Repeat("x", maxSocketPath))
		}, "absolute path"},
		{"file in its place", func(t *testing.T, _, path string) string {
			t.Helper()
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, "not a socket"},
		{"link in its place", func(t *testing.T, dir, path string) string {
			t.Helper()
			leaveSocket(t, filepath.Join(dir, "other"))
			if err := os.Symlink("other", path); err != nil {
				t.Fatal(err)
			}
			return path
		}, "not a socket"},
		{"socket of somebody else's", func(t *testing.T, _, path string) string {
			t.Helper()
			leaveSocket(t, path)
			if err := os.Chown(path, nobody, -1); err != nil {
				t.Fatal(err)
			}
			return path
		}, "uid 65534"},
		{"directory open to all", func(t *testing.T, dir, path string) string {
			t.Helper()
			mkdir(t, dir, 0o777, 0)
			return path
		}, "others may write"},
		{"sticky directory open to all", func(t *testing.T, dir, path string) string {
			t.Helper()
			mkdir(t, dir, 0o777|fs.ModeSticky, 0)
			return path
		}, "others may write"},
		{"directory open to its group", func(t *testing.T, dir, path string) string {
			t.Helper()
			mkdir(t, dir, 0o775, 0)
			return path
		}, "others may write"},
		{"directory of somebody else's", func(t *testing.T, dir, path string) string {
			t.Helper()
			mkdir(t, dir, 0o755, nobody)
			return path
		}, "uid 65534"},
		{"directory above open to all", func(t *testing.T, dir, _ string) string {
			t.Helper()
			mkdir(t, dir, 0o777, 0)
			return filepath.Join(dir, "run", "agent.sock")
		}, "others may write"},
		{"directory reached over somebody else's", func(t *testing.T, dir, _ string) string {
			t.Helper()
			theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
			mkdir(t, theirs, 0o755, nobody)
			mkdir(t, ours, 0o755, 0)
			if err := os.Symlink(ours, filepath.Join(theirs, "link")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(theirs, "link", "agent.sock")
		}, "uid 65534"},
		{"link into somebody else's", func(t *testing.T, dir, _ string) string {
			t.Helper()
			theirs := filepath.Join(dir, "theirs")
			mkdir(t, theirs, 0o755, nobody)
			mkdir(t, filepath.Join(theirs, "run"), 0o755, 0)
			if err := os.Symlink(filepath.Join(theirs, "run"), filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "link", "agent.sock")
		}, "uid 65534"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Dir(filepath.Dir(socketPath(t)))
			path := tt.prepare(t, dir, filepath.Join(dir, "agent.sock"))
			before, _ := os.ReadFile(path)
			ln, err := Listen(path)
			if err == nil {
				_ = ln.Close()
			}
			if !errors.Is(err, ErrUnsafeSocket) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Listen = %v, want ErrUnsafeSocket with %q", err, tt.want)
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("what was there has changed")
			}
		})
	}
}

func TestListenLeaksNothingWhenItFails(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "agent.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := countDescriptors(t)
	for range 5 {
		if _, err := Listen(path); !errors.Is(err, ErrUnsafeSocket) {
			t.Fatalf("Listen = %v, want ErrUnsafeSocket", err)
		}
	}
	if after := countDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestForeignPeerIsTurnedAway(t *testing.T) {
	path := serve(t, newBackend(t))
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET /v1/status", "POST /v1/check"} {
		var c *net.UnixConn
		asNobody(t, func() (err error) {
			c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
			return err
		})
		lure := newCanary(t)
		sendRaw(t, c, method+" HTTP/1.1\r\nHost: assay\r\n\r\n", lure.fd())
		resp, body := receive(t, c)
		wantRefusal(t, resp, body, 403, "uid 65534")
		if !strings.Contains(body, "run it as root") {
			t.Errorf("no remedy in %s", body)
		}
		lure.wantGone()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusingHangsUp(t *testing.T) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := dial(t, ln.Addr().String())
	sendRaw(t, c, "GET")
	foreign, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	refuse(foreign, nobody)
	if err := foreign.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
	resp, body := receive(t, c)
	wantRefusal(t, resp, body, 403, "uid 65534")
}

// countDescriptors counts this process's descriptors.
func countDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestAcceptShortage: of the errors that accept(2) ends with, those that pass do not end
// the server.
func TestAcceptShortage(t *testing.T) {
	for errno, passes := range map[unix.Errno]bool{
		unix.ENOMEM: true, unix.ENOBUFS: true, unix.EMFILE: true, unix.ENFILE: true, unix.EINVAL: false,
	} {
		err := passing(&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)})
		ne, ok := err.(interface{ Temporary() bool })
		if !ok || ne.Temporary() != passes {
			t.Errorf("%v: want net/http to try again: %t, got %v", errno, passes, ok && ne.Temporary())
		}
		if !errors.Is(err, errno) {
			t.Errorf("%v is no %v any more", err, errno)
		}
	}
}
