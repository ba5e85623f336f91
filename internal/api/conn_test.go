package api

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
)

func TestCheckGetsTheClientsDescriptor(t *testing.T) {
	b := newBackend(t)
	b.check = func(_ context.Context, fd int, tenant, path string) (CheckResult, error) {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor flags %#x, %v; want close-on-exec", flags, err)
		}
		content := make([]byte, 16)
		n, err := unix.Pread(fd, content, 0)
		return CheckResult{Path: path, Tenant: tenant, Verdict: string(content[:n])}, err
	}
	client := NewClient(serve(t, b))
	name := filepath.Join(t.TempDir(), "file with & and ?")
	if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(name); err != nil { // the descriptor counts, not the name
		t.Fatal(err)
	}
	for _, tenant := range []string{"", "payments"} {
		got, err := client.Check(t.Context(), f, tenant)
		if err != nil || got.Path != name || got.Tenant != tenant || got.Verdict != "content" || got.Scanners == nil {
			t.Errorf("Check() = %+v, %v", got, err)
		}
	}
}

func TestCheckRefusesWhatCannotBeScanned(t *testing.T) {
	client := NewClient(serve(t, newBackend(t)))
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		flags      int
		want       string
	}{
		{"directory", dir, os.O_RDONLY, "not of a regular file"},
		{"device", "/dev/null", os.O_RDONLY, "not of a regular file"},
		{"write-only", file, os.O_WRONLY, "not open for reading"},
		{"path only", file, unix.O_PATH, "not open for reading"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.OpenFile(tt.path, tt.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := client.Check(t.Context(), f, ""); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check() = %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

func TestDescriptorsAreClosedWhateverComes(t *testing.T) {
	const status, check = "GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n", "POST /v1/check HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
	copies := func(fd, n int) []int {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = fd
		}
		return fds
	}
	type message struct {
		text string
		fds  int
	}
	tests := []struct {
		name     string
		messages []message
		status   int // 0: no reply, the client hangs up
		want     string
	}{
		{"not asked for", []message{{status, 1}}, 200, "version"},
		{"no such path", []message{{"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 1}}, 404, "/x"},
		{"none", []message{{check, 0}}, 400, "no descriptor"},
		{"not a file", []message{{check, 1}}, 400, "regular file"},
		{"two", []message{{check, 2}}, 400, "more than one"},
		{"as many as are read", []message{{check, maxReceived}}, 400, "more than one"},
		{"more than are read", []message{{check, 200}}, 400, "more than one"},
		{"two, one after another", []message{{check[:9], 1}, {check[9:], 1}}, 400, "more than one"},
		{"three, one after another", []message{{check[:9], 1}, {check[9:20], 1}, {check[20:], 1}}, 400, "more than one"},
		{"with a body", []message{{strings.Replace(check, ": 0", ": 1", 1) + "x", 1}}, 413, "longer"},
		{"unknown parameter", []message{{strings.Replace(check, "check", "check?x=1", 1), 1}}, 400, "x"},
		{"not HTTP", []message{{"\x00\x01\r\n\r\n", 1}}, 400, ""},
		{"half a request", []message{{check[:9], 1}}, 0, ""},
	}
	path := serve(t, newBackend(t))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, lure := dial(t, path), newCanary(t)
			for _, m := range tt.messages {
				sendRaw(t, c, m.text, copies(lure.fd(), m.fds)...)
			}
			if tt.status == 0 {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			} else if resp, body := receive(t, c); resp.StatusCode != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("reply %s, %s; want %d with %q", resp.Status, body, tt.status, tt.want)
			}
			lure.wantGone() // although the connection may live on
		})
	}
}

func TestDescriptorOfOneRequestIsNotTheNexts(t *testing.T) {
	c, lure := dial(t, serve(t, newBackend(t))), newCanary(t)
	sendRaw(t, c, "GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n", lure.fd(), lure.fd())
	if resp, _ := receive(t, c); resp.StatusCode != 200 {
		t.Fatalf("status %s", resp.Status)
	}
	lure.wantGone()
	sendRaw(t, c, "POST /v1/check HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
	resp, body := receive(t, c)
	wantRefusal(t, resp, body, 400, "no descriptor")
}

func TestDescriptorDuringACallIsClosed(t *testing.T) {
	b := newBackend(t)
	entered, release := make(chan struct{}), make(chan struct{})
	b.announce = func(context.Context, announce.Container) (announce.Guarded, error) {
		close(entered)
		<-release
		return announce.Guarded{}, nil
	}
	c, lure := dial(t, serve(t, b)), newCanary(t)
	sendRaw(t, c, "POST /v1/containers HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n"+goodAnnouncement)
	<-entered
	sendRaw(t, c, "G", lure.fd())
	close(release)
	if resp, body := receive(t, c); resp.StatusCode != 200 {
		t.Errorf("reply %s, %s", resp.Status, body)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	lure.wantGone()
}

func TestNoDescriptorLeaks(t *testing.T) {
	before := countDescriptors(t)
	t.Run("calls", func(t *testing.T) {
		b := newBackend(t)
		b.check = func(context.Context, int, string, string) (CheckResult, error) { return CheckResult{}, teapotError{} }
		client := NewClient(serve(t, b))
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 20 {
			if _, err := client.Check(t.Context(), f, ""); err == nil {
				t.Error("Check() did not fail")
			}
			if _, err := client.Status(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	if after := countDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestConnRead(t *testing.T) {
	ln := listen(t, socketPath(t))
	c, lure := dial(t, ln.Addr().String()), newCanary(t)
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	sendRaw(t, c, "ab", lure.fd())
	if n, err := accepted.Read(nil); n != 0 || err != nil {
		t.Errorf("empty Read = %d, %v", n, err)
	}
	buf := make([]byte, 8)
	if n, err := accepted.Read(buf); string(buf[:n]) != "ab" || err != nil {
		t.Errorf("Read = %q, %v; want ab", buf[:n], err)
	}
	if err := accepted.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := accepted.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read after the deadline = %d, %v", n, err)
	}
	if err := errors.Join(c.Close(), accepted.SetReadDeadline(time.Time{})); err != nil {
		t.Fatal(err)
	}
	if n, err := accepted.Read(buf); n != 0 || err != io.EOF { //nolint:errorlint // net/http compares it too
		t.Errorf("Read at the end = %v, want EOF itself", err)
	}
	if err := accepted.Close(); err != nil {
		t.Fatal(err)
	}
	lure.wantGone()
}

func TestConnKeepsNothingAfterClose(t *testing.T) {
	ln := listen(t, socketPath(t))
	dial(t, ln.Addr().String())
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, ok := nc.(*conn)
	if !ok {
		t.Fatalf("Accept returned a %T", nc)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	lure := newCanary(t)
	fd, err := unix.Dup(lure.fd())
	if err != nil {
		t.Fatal(err)
	}
	c.keep([]int{fd}, false) // a read that was under way
	lure.wantGone()
}

// The kernel truncates control messages too when this process may not open more.
func TestConnRefusesATruncatedMessage(t *testing.T) {
	c, lure := &conn{fd: noDescriptor}, newCanary(t)
	fd, err := unix.Dup(lure.fd())
	if err != nil {
		t.Fatal(err)
	}
	c.keep([]int{fd}, true)
	if _, err := c.take(); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("take() = %v, want a refusal", err)
	}
	lure.wantGone()
}

func FuzzReceived(f *testing.F) {
	f.Add([]byte{})
	f.Add(unix.UnixRights(1, 2, 3))
	f.Add(unix.UnixRights(7)[:unix.SizeofCmsghdr+2])
	f.Add([]byte("\x13\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00000"))    // less than a descriptor
	f.Add([]byte("\x16\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00000000")) // one and a half
	f.Fuzz(func(t *testing.T, oob []byte) {
		if fds := received(oob); len(fds)*4 > len(oob) {
			t.Fatalf("%d descriptors from %d bytes", len(fds), len(oob))
		}
	})
}
