package clamd

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner/scannertest"
)

const fakeVersion = "ClamAV 1.4.6/27000/Thu Jan  1 00:00:00 2026"

// A fakeClamd speaks clamd's protocol well, apart from what its script says.
type fakeClamd struct {
	address   string
	version   atomic.Pointer[string] // the reply to VERSION
	accepted  atomic.Int64           // connections
	scans     atomic.Int64           // scan commands
	streams   atomic.Int64           // of which INSTREAM
	mostAlive atomic.Int64           // connections at once

	script   script
	listener net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool
	done     chan struct{}
	serving  sync.WaitGroup
}

// A script says what happens instead of the plain answer to a scan command. id is
// the command's number. If it returns an error, the connection is closed.
type script func(c *fakeConn, id int, stream bool) error

// A fakeConn is one connection to a fakeClamd.
type fakeConn struct {
	net.Conn
	r     *bufio.Reader
	clamd *fakeClamd
	fd    int // last descriptor passed, or -1
	scans int // scan commands on this connection
}

// errHangUp makes a script close the connection.
var errHangUp = errors.New("hang up")

// startFake starts a fake on a unix socket or on TCP, and stops it at the test's end.
func startFake(tb testing.TB, network string, s script) *fakeClamd {
	tb.Helper()
	f := &fakeClamd{script: s, conns: map[net.Conn]bool{}, done: make(chan struct{})}
	version := fakeVersion
	f.version.Store(&version)
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "fake") //nolint:usetesting // TempDir's name grows with the test's; a socket's path is short.
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				tb.Error(err)
			}
		})
		addr = filepath.Join(dir, "ctl")
	}
	f.listen(tb, network, addr)
	tb.Cleanup(f.stop)
	return f
}

func (f *fakeClamd) listen(tb testing.TB, network, addr string) {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), network, addr)
	if err != nil {
		tb.Fatal(err)
	}
	f.listener = l
	f.address = network + ":" + l.Addr().String()
	f.serving.Go(f.accept)
}

func (f *fakeClamd) stop() {
	f.listener.Close()
	close(f.done)
	f.hangUp()
	f.serving.Wait()
}

// hangUp closes all connections.
func (f *fakeClamd) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

func (f *fakeClamd) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		c := &fakeConn{Conn: conn, clamd: f, fd: -1}
		f.accepted.Add(1)
		c.r = bufio.NewReader(c)
		f.mu.Lock()
		f.conns[conn] = true
		f.mostAlive.Store(max(f.mostAlive.Load(), int64(len(f.conns))))
		f.mu.Unlock()
		f.serving.Go(func() {
			_ = c.serve() // The driver's side tells what went wrong.
			f.mu.Lock()
			delete(f.conns, conn)
			f.mu.Unlock()
			conn.Close()
			c.closeFD()
		})
	}
}

// Read reads, and keeps a descriptor that comes along.
func (c *fakeConn) Read(p []byte) (int, error) {
	sock, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return c.Conn.Read(p)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := sock.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	if msgs, e := unix.ParseSocketControlMessage(oob[:oobn]); e == nil && len(msgs) == 1 {
		if fds, e := unix.ParseUnixRights(&msgs[0]); e == nil && len(fds) == 1 {
			c.closeFD()
			c.fd = fds[0]
		}
	}
	return n, nil
}

func (c *fakeConn) closeFD() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

func (c *fakeConn) serve() error {
	for id := 0; ; id++ {
		command, err := c.r.ReadString(0)
		if err != nil {
			return err
		}
		switch name := strings.Trim(command, "z\x00"); name {
		case "IDSESSION":
		case "PING":
			err = c.say("%d: PONG\x00", id)
		case "VERSION":
			err = c.say("%d: %s\x00", id, *c.clamd.version.Load())
			if *c.clamd.version.Load() == "COMMAND UNAVAILABLE" {
				return errHangUp
			}
		case "FILDES", "INSTREAM":
			err = c.scan(id, name == "INSTREAM")
		default:
			err = fmt.Errorf("unknown command %q", command)
		}
		if err != nil {
			return err
		}
	}
}

func (c *fakeConn) scan(id int, stream bool) error {
	c.scans++
	c.clamd.scans.Add(1)
	if stream {
		c.clamd.streams.Add(1)
	} else if _, err := c.r.ReadByte(); err != nil || c.fd < 0 {
		return errors.Join(errHangUp, err)
	}
	defer c.closeFD()
	if c.clamd.script != nil {
		return c.clamd.script(c, id, stream)
	}
	return c.clean(id, stream)
}

// clean takes the file and calls it clean.
func (c *fakeConn) clean(id int, stream bool) error {
	if !stream {
		return c.say("%d: fd[11]: OK\x00", id)
	}
	if err := c.takeStream(); err != nil {
		return err
	}
	return c.say("%d: stream: OK\x00", id)
}

// answer answers a scan, after the content has come, with about.
func (c *fakeConn) answer(id int, stream bool, about string) error {
	object := "fd[7]"
	if stream {
		object = "stream"
		if err := c.takeStream(); err != nil {
			return err
		}
	}
	return c.say("%d: %s: %s\x00", id, object, about)
}

func (c *fakeConn) takeStream() error {
	for {
		var length uint32
		if err := binary.Read(c.r, binary.BigEndian, &length); err != nil || length == 0 {
			return err
		}
		if _, err := c.r.Discard(int(length)); err != nil {
			return err
		}
	}
}

func (c *fakeConn) say(format string, args ...any) error {
	_, err := fmt.Fprintf(c, format, args...)
	return err
}

// hang answers nothing until the driver hangs up or the fake is stopped.
func (c *fakeConn) hang() error {
	_, err := io.Copy(io.Discard, c)
	return errors.Join(errHangUp, err)
}

// hung returns a scan that lasts until somebody ends it.
func hung(t *testing.T, network string) scannertest.Hung {
	t.Helper()
	started := make(chan struct{}, 1)
	f := startFake(t, network, func(c *fakeConn, _ int, _ bool) error {
		started <- struct{}{}
		return c.hang()
	})
	s, err := New(Options{Address: f.address})
	if err != nil {
		t.Fatal(err)
	}
	s.lingerTime = 100 * time.Millisecond // this clamd understands nothing any more
	return scannertest.Hung{Scanner: s, File: scannertest.FileOf(t, []byte("never answered")), Started: started}
}

// zipOf returns an archive with one member, stored, with the given flags.
func zipOf(t *testing.T, flags uint16, name string, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	member, err := w.CreateRaw(&zip.FileHeader{
		Name: name, Method: zip.Store, Flags: flags,
		CompressedSize64: uint64(len(content)), UncompressedSize64: uint64(len(content)),
	})
	if err == nil {
		_, err = member.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
