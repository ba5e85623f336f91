package fault

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// A Clamd speaks clamd's protocol over a unix socket, in this process, knows the test
// image's marker, and misbehaves when told to.
type Clamd struct {
	Socket string

	tb       testing.TB
	fault    atomic.Pointer[Misbehaviour]
	version  atomic.Int64
	scans    atomic.Int64 // files that were looked at
	content  []byte
	listener net.Listener

	mu      sync.Mutex
	conns   map[net.Conn]bool
	closed  bool
	serving sync.WaitGroup
}

// A Misbehaviour is what a Clamd does instead of what it should.
type Misbehaviour struct {
	Name string
	// Answer says what is sent instead of the plain answer to a scan, with the number
	// of the command before it; ending is whether the connection is closed then.
	Answer func(plain string) (text string, ending bool)
	// Most is how many connections are served at once, if it is not 0. Others are
	// closed as soon as they are there.
	Most int
	// Before is called before a file is looked at.
	Before func()
}

// StartClamd starts a Clamd that behaves. It ends with tb.
func StartClamd(tb testing.TB, suite *harness.Suite) *Clamd {
	tb.Helper()
	_, content := harness.ClamSignature()
	c := &Clamd{Socket: filepath.Join(suite.Scratch(tb), "clamd.ctl"), tb: tb, content: content, conns: map[net.Conn]bool{}}
	c.version.Store(1)
	c.fault.Store(&Misbehaviour{})
	c.Listen()
	tb.Cleanup(c.Die)
	return c
}

// Do makes it misbehave from now on; the zero value of Misbehaviour is the end of that.
func (c *Clamd) Do(m Misbehaviour) { c.fault.Store(&m) }

// Update makes its database a newer one.
func (c *Clamd) Update() { c.version.Add(1) }

// Scans returns how many files it has looked at.
func (c *Clamd) Scans() int64 { return c.scans.Load() }

// Listen starts it again after Die.
func (c *Clamd) Listen() {
	c.tb.Helper()
	listener, err := net.Listen("unix", c.Socket) //nolint:noctx // it does not block
	if err != nil {
		c.tb.Fatal(err)
	}
	c.mu.Lock()
	c.listener, c.closed = listener, false
	c.mu.Unlock()
	c.serving.Go(func() { c.accept(listener) })
}

// Die closes its socket and every connection, with whatever was being scanned.
func (c *Clamd) Die() {
	c.mu.Lock()
	c.closed = true
	c.listener.Close()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.serving.Wait()
}

// HangUp closes every connection, and stays there for new ones.
func (c *Clamd) HangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		conn.Close()
	}
}

func (c *Clamd) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		most := c.fault.Load().Most
		if c.closed || most > 0 && len(c.conns) >= most {
			conn.Close()
		} else {
			c.conns[conn] = true
			c.serving.Go(func() { c.serve(conn) })
		}
		c.mu.Unlock()
	}
}

func (c *Clamd) serve(conn net.Conn) {
	s := &session{clamd: c, Conn: conn, fd: -1}
	s.commands = bufio.NewReader(s)
	_ = s.serve() // what went wrong is the agent's to tell
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	conn.Close()
	s.drop()
}

// A session is one connection.
type session struct {
	net.Conn

	clamd    *Clamd
	commands *bufio.Reader
	fd       int // that was passed last; -1: none
}

// Read reads, and keeps a descriptor that comes along.
func (s *session) Read(p []byte) (int, error) {
	sock, ok := s.Conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := sock.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			s.drop()
			s.fd = fds[0]
		}
	}
	return n, nil
}

func (s *session) drop() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *session) serve() error {
	for id := 0; ; id++ {
		command, err := s.commands.ReadString(0)
		if err != nil {
			return err
		}
		switch name := strings.Trim(command, "z\x00"); name {
		case "IDSESSION":
		case "PING":
			_, err = fmt.Fprintf(s, "%d: PONG\x00", id)
		case "VERSION":
			_, err = fmt.Fprintf(s, "%d: ClamAV 1.4.6/%d/Thu Jan  1 00:00:00 2026\x00", id, s.clamd.version.Load())
		case "FILDES":
			err = s.scan(id)
		default:
			err = fmt.Errorf("unknown command %q", command)
		}
		if err != nil {
			return err
		}
	}
}

// scan looks into the file that was passed, and says what it finds.
func (s *session) scan(id int) error {
	if _, err := s.commands.ReadByte(); err != nil || s.fd < 0 {
		return errors.Join(errors.New("no descriptor"), err)
	}
	defer s.drop()
	fault := s.clamd.fault.Load()
	if fault.Before != nil {
		fault.Before()
	}
	plain := fmt.Sprintf("%d: fd[7]: %s\x00", id, s.judge())
	s.clamd.scans.Add(1)
	ending := false
	if fault.Answer != nil {
		plain, ending = fault.Answer(plain)
	}
	_, err := s.Write([]byte(plain))
	if ending {
		err = errors.Join(err, io.EOF)
	}
	return err
}

func (s *session) judge() string {
	// To open it again would raise an event, for which the agent would ask here.
	var stat unix.Stat_t
	err := unix.Fstat(s.fd, &stat)
	text := make([]byte, stat.Size)
	for n, read := 0, 1; err == nil && read > 0 && n < len(text); n += read {
		read, err = unix.Pread(s.fd, text[n:], int64(n))
	}
	if err != nil {
		return "Can't read file ERROR"
	}
	if bytes.Contains(text, s.clamd.content) {
		name, _ := harness.ClamSignature()
		return name + ".UNOFFICIAL FOUND"
	}
	if bytes.HasPrefix(text, []byte("\x1f\x8b")) {
		// What the agent asks a clamd's health with: archives in archives, too deep.
		return "Heuristics.Limits.Exceeded.MaxRecursion FOUND"
	}
	return "OK"
}
