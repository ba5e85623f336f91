package clamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// plain is a file with nothing to find.
func plain(t *testing.T) *scanner.File {
	t.Helper()
	return scannertest.FileOf(t, []byte("nothing to find"))
}

// object returns what the fake calls a file.
func object(stream bool) string {
	if stream {
		return "stream"
	}
	return "fd[7]"
}

// TestFaults has clamd misbehave in every scan.
func TestFaults(t *testing.T) {
	// raw sends exactly this once the file is there, and hangs up.
	raw := func(format string) script {
		return func(c *fakeConn, id int, stream bool) error {
			if stream {
				if err := c.takeStream(); err != nil {
					return err
				}
			}
			text := strings.NewReplacer("ID", fmt.Sprint(id), "OBJECT", object(stream)).Replace(format)
			return errors.Join(c.say("%s", text), errHangUp)
		}
	}
	for _, c := range []struct {
		name   string
		script script
		want   error
	}{
		{"garbage", raw("\x01\x02\xff whatever\x00"), scanner.ErrProtocol},
		{"HTTP", raw("HTTP/1.1 400 Bad Request\r\n\r\n"), scanner.ErrProtocol},
		{"half a line", raw("ID: OBJ"), scanner.ErrProtocol},
		{"OK without terminator", raw("ID: OBJECT: OK"), scanner.ErrProtocol},
		{"OK of a line protocol", raw("ID: OBJECT: OK\n"), scanner.ErrProtocol},
		{"OK to another command", raw("1: OBJECT: OK\x00"), scanner.ErrProtocol},
		{"OK without number", raw("OBJECT: OK\x00"), scanner.ErrProtocol},
		{"OK about another file", raw("ID: /etc/passwd: OK\x00"), scanner.ErrProtocol},
		{"empty reply", raw("\x00"), scanner.ErrProtocol},
		{"endless line", raw(strings.Repeat("ID: OBJECT: OK ", 1000)), scanner.ErrProtocol},
		{"closed", raw(""), scanner.ErrUnavailable},
		{"unknown command", raw("ID: UNKNOWN COMMAND\x00"), scanner.ErrProtocol},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(c.name+"/"+network, func(t *testing.T) {
				f := startFake(t, network, c.script)
				s := newScanner(t, Options{Address: f.address})
				v := s.Scan(t.Context(), plain(t))
				if v.Outcome != scanner.Error || !errors.Is(v.Err, c.want) {
					t.Errorf("got %+v, want an error that wraps %q", v, c.want)
				}
				if f.scans.Load() != 1 {
					t.Errorf("asked %d times on a new connection", f.scans.Load())
				}
			})
		}
	}
}

func TestRefusedDescriptor(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, _ bool) error {
		return errors.Join(c.say("%d: No file descriptor received. ERROR\x00", id), errHangUp)
	})
	s := newScanner(t, Options{Address: f.address})
	v := s.Scan(t.Context(), plain(t))
	if v.Outcome != scanner.Error || !strings.Contains(v.Err.Error(), "No file descriptor received") {
		t.Errorf("got %+v", v)
	}
	if err := s.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "No file descriptor received") {
		t.Errorf("Health: %v", err)
	}
}

// TestRefusedSessionIsNotKept: after an ERROR, clamd may be anywhere in what it
// was sent.
func TestRefusedSessionIsNotKept(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		return c.answer(id, stream, "Can't allocate memory ERROR")
	})
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour})
	known(t, s)
	for range 3 {
		wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Error)
	}
	if n := f.accepted.Load(); n != 4 {
		t.Errorf("%d connections, want one for each scan and one for the refresher", n)
	}
}

func TestSlowReply(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, _ bool) error {
		for _, b := range fmt.Sprintf("%d: fd[7]: OK\x00", id) {
			if err := c.say("%c", b); err != nil {
				return err
			}
		}
		return nil
	})
	s := newScanner(t, Options{Address: f.address})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
}

// TestCutStream: clamd ends a stream before it has the whole file.
func TestCutStream(t *testing.T) {
	for _, c := range []struct {
		reply string
		want  scanner.Outcome
	}{
		{"INSTREAM size limit exceeded. ERROR", scanner.Unscannable},
		{"stream: OK", scanner.Error},
		{"stream: Some.Name FOUND", scanner.Error},
	} {
		t.Run(c.reply, func(t *testing.T) {
			f := startFake(t, "tcp", func(c2 *fakeConn, id int, _ bool) error {
				return errors.Join(c2.say("%d: %s\x00", id, c.reply), errHangUp)
			})
			s := newScanner(t, Options{Address: f.address})
			wantOutcome(t, s.Scan(t.Context(), scannertest.SparseFile(t, 64<<20)), c.want)
		})
	}
}

// TestUnsolicited: a session on which clamd says more than it was asked for is
// not used again.
func TestUnsolicited(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, _ bool) error {
		return c.say("%d: fd[7]: OK\x00%d: fd[7]: OK\x00%d: fd[7]: OK\x00", id, id+1, id+2)
	})
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour})
	known(t, s)
	for range 3 {
		wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	}
	if n := f.accepted.Load(); n != 4 {
		t.Errorf("%d connections, want one for each scan and one for the refresher", n)
	}
}

// TestEarlyReply: what clamd says on an idle session is not the next reply, even
// if it looks like it.
func TestEarlyReply(t *testing.T) {
	conns := make(chan *fakeConn, 1)
	ids := make(chan int, 1)
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		if c.clamd.scans.Load() > 1 {
			return c.answer(id, stream, "A.B FOUND")
		}
		conns <- c
		ids <- id
		return c.clean(id, stream)
	})
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	c, id := <-conns, <-ids
	if err := c.say("%d: %s\x00%d: fd[7]: OK\x00", id+1, fakeVersion, id+2); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Malicious)
}

// TestReconnect: clamd closes connections between two scans, or in the second.
func TestReconnect(t *testing.T) {
	// Each connection answers its first scan; what happens in the second differs.
	second := func(then func(c *fakeConn) error) script {
		return func(c *fakeConn, id int, stream bool) error {
			if c.scans > 1 && then != nil {
				return then(c)
			}
			return c.clean(id, stream)
		}
	}
	for _, c := range []struct {
		name    string
		between func(f *fakeClamd)
		then    func(c *fakeConn) error
	}{
		{"closed while idle", (*fakeClamd).hangUp, nil},
		{"closed in the scan", nil, func(*fakeConn) error { return errHangUp }},
		{"timed out", nil, func(c *fakeConn) error { return errors.Join(c.say(goodbye), errHangUp) }},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(c.name+"/"+network, func(t *testing.T) {
				f := startFake(t, network, second(c.then))
				// The refresher's first question may fail when all connections are closed.
				s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour, BackoffMin: 1, BackoffMax: 1})
				wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
				if c.between != nil {
					c.between(f)
				}
				wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
			})
		}
	}
}

// TestRetryOnce: a file that makes clamd hang up every time is not tried for ever.
func TestRetryOnce(t *testing.T) {
	f := startFake(t, "unix", func(c *fakeConn, id int, stream bool) error {
		if c.clamd.scans.Load() > 1 {
			return errHangUp
		}
		return c.clean(id, stream)
	})
	s := newScanner(t, Options{Address: f.address, RefreshInterval: time.Hour})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
	v := s.Scan(t.Context(), plain(t))
	if v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrUnavailable) {
		t.Errorf("got %+v, want an error that wraps %q", v, scanner.ErrUnavailable)
	}
	if n := f.scans.Load(); n != 3 {
		t.Errorf("asked %d times, want 3: once well, once on the old connection, once on a new one", n)
	}
}

// TestBackoff: after a failed attempt, scans fail without another one.
func TestBackoff(t *testing.T) {
	f := startFake(t, "tcp", nil)
	addr := f.listener.Addr().String()
	f.listener.Close()
	f.serving.Wait()
	s := newScanner(t, Options{Address: f.address, BackoffMin: time.Hour})
	v := s.Scan(t.Context(), plain(t))
	if v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrUnavailable) {
		t.Errorf("nobody listens: got %+v, want an error that wraps %q", v, scanner.ErrUnavailable)
	}
	// Attempts that the refresher had begun are over once it waits, too.
	eventually(t, s.backoffBegun)
	f.listen(t, "tcp", addr)
	v = s.Scan(t.Context(), plain(t))
	var refused *net.OpError
	if !errors.Is(v.Err, scanner.ErrUnavailable) || !errors.As(v.Err, &refused) {
		t.Errorf("in back-off: got %+v, want an error that wraps %q and the reason", v, scanner.ErrUnavailable)
	}
	if n := f.accepted.Load(); n != 0 {
		t.Errorf("%d connections in back-off", n)
	}
	// Health asks nevertheless, and ends the back-off.
	if err := s.Health(t.Context()); !errors.Is(err, ErrSilentLimits) {
		t.Errorf("Health: %v", err)
	}
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean)
}

// backoffBegun returns nil once an attempt has failed.
func (s *Scanner) backoffBegun() error {
	if s.backoff.check() == nil {
		return errors.New("no attempt has failed")
	}
	return nil
}

func TestUpLater(t *testing.T) {
	f := startFake(t, "unix", nil)
	path := f.listener.Addr().String()
	f.listener.Close()
	f.serving.Wait()
	s := newScanner(t, Options{Address: f.address, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, RefreshInterval: time.Millisecond})
	wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Error)
	f.listen(t, "unix", path)
	eventually(t, func() error { return s.Scan(t.Context(), plain(t)).Err })
}

// TestSilentServer: a server that accepts and says nothing.
func TestSilentServer(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // The kernel accepts.
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newScanner(t, Options{Address: "tcp:" + l.Addr().String(), DialTimeout: 20 * time.Millisecond})
	v := s.Scan(t.Context(), plain(t))
	if v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrUnavailable) {
		t.Errorf("got %+v, want an error that wraps %q", v, scanner.ErrUnavailable)
	}
	patient := newScanner(t, Options{Address: "tcp:" + l.Addr().String(), DialTimeout: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if v := patient.Scan(ctx, plain(t)); !errors.Is(v.Err, context.DeadlineExceeded) {
		t.Errorf("got %+v, want an error that wraps %q", v, context.DeadlineExceeded)
	}
	if err := patient.Health(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Health: %v, want an error that wraps %q", err, context.DeadlineExceeded)
	}
}
