package clamd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

const (
	// maxCommands is when a session is replaced: long before clamd's 32-bit
	// command numbers wrap around.
	maxCommands = 1 << 24
	// chunkSize is the length in bytes of what is streamed in one write.
	chunkSize = 128 << 10
	// goodbye is what clamd sends, without a number, before it closes an idle session.
	goodbye = "COMMAND READ TIMED OUT\n"
)

// errDropped: clamd closed the connection instead of replying.
var errDropped = errors.New("clamd closed the connection")

// A session is one connection in an IDSESSION. It is used by one goroutine at a
// time; only close may be called from others.
type session struct {
	conn       net.Conn
	replies    *bufio.Reader
	id         uint32 // number of the last command sent
	hasVersion bool   // clamd answers VERSION
	dirty      bool   // an exchange has begun and not properly ended
	passed     bool   // a descriptor was passed, and its scan has not ended
	used       time.Time
	chunk      []byte // for streaming; made when first needed
}

// An answer is what one scan command brought.
type answer struct {
	verdict scanner.Verdict    // without generation and mark
	gen     scanner.Generation // that clamd told just before
}

// openSession connects and starts a session. It asks for the version, which is
// returned, so that nothing but a clamd that answers is ever a session.
func openSession(ctx context.Context, network, addr string) (*session, scanner.Generation, error) {
	c, gen, err := greet(ctx, network, addr, true)
	if errors.Is(err, errNoVersion) {
		// clamd has closed that session.
		return greet(ctx, network, addr, false)
	}
	return c, gen, err
}

func greet(ctx context.Context, network, addr string, hasVersion bool) (*session, scanner.Generation, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, "", err
	}
	c := &session{conn: conn, replies: bufio.NewReaderSize(prompt{conn}, maxLine), hasVersion: hasVersion}
	defer context.AfterFunc(ctx, c.close)()
	err = c.write([]byte("zIDSESSION\x00"))
	var gen scanner.Generation
	if err == nil {
		gen, err = c.ask()
	}
	if err != nil {
		c.close()
		if ctx.Err() != nil {
			err = ended(ctx, err)
		}
		return nil, "", err
	}
	return c, gen, nil
}

// ended says that err came of the context's end.
func ended(ctx context.Context, err error) error {
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}

// close ends the session and every call that waits on it.
func (c *session) close() {
	_ = c.conn.Close() // The connection is of no use any more; how it ends is not either.
}

// interrupt ends every call that waits on the session, which is of no use any more.
func (c *session) interrupt() {
	_ = c.conn.SetDeadline(time.Unix(1, 0)) // It fails only on what is closed.
}

// awaitUnderstood returns when clamd has understood every command so far, which it does
// in order, or when the connection fails. Scans may still be under way.
func (c *session) awaitUnderstood() {
	if err := c.write(c.command(nil, "PING")); err != nil {
		return
	}
	for {
		// What was interrupted may have read a part of a line.
		line, err := c.replies.ReadSlice(0)
		if err != nil || bytes.HasSuffix(line, []byte(": PONG\x00")) {
			return
		}
	}
}

// reusable reports whether the next command can be sent on this session.
func (c *session) reusable() bool { return !c.dirty && c.id < maxCommands }

// alive reports whether clamd has neither closed the session nor sent what
// nobody asked for. It does not block.
func (c *session) alive() bool {
	conn, ok := c.conn.(syscall.Conn)
	if !ok || c.replies.Buffered() > 0 {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var peeked [1]byte
		_, err := retry(func() (int, error) {
			n, _, err := unix.Recvfrom(int(fd), peeked[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return n, err
		})
		quiet = errors.Is(err, unix.EAGAIN)
		return true
	})
	return err == nil && quiet
}

// A prompt reads from a connection whose peer writes in small pieces. clamd sends
// a VERSION reply in two, and over TCP sends the second (and then the verdict)
// only when the first is acknowledged, which Linux by default puts off for 40 ms.
type prompt struct{ net.Conn }

// Read acknowledges at once what came before, then reads.
func (p prompt) Read(b []byte) (int, error) {
	if conn, ok := p.Conn.(*net.TCPConn); ok {
		raw, err := conn.SyscallConn()
		if err != nil {
			return 0, err
		}
		err = raw.Control(func(fd uintptr) {
			// It only saves time: if it fails, reading still works.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		})
		if err != nil {
			return 0, err
		}
	}
	return p.Conn.Read(b)
}

// ask returns the generation if clamd tells its version; if it does not, the
// session is only proven to work.
func (c *session) ask() (scanner.Generation, error) {
	if !c.hasVersion {
		return "", c.ping()
	}
	c.dirty = true
	if err := c.write(c.command(nil, "VERSION")); err != nil {
		return "", err
	}
	gen, err := c.readVersion(c.id)
	c.dirty = err != nil
	return gen, err
}

// ping asks clamd whether it is there.
func (c *session) ping() error {
	c.dirty = true
	if err := c.write(c.command(nil, "PING")); err != nil {
		return err
	}
	body, err := c.readReply(c.id)
	if err != nil {
		return err
	}
	if string(body) != "PONG" {
		return protocolError("not an answer to PING", body)
	}
	c.dirty = false
	return nil
}

// passFile has the file behind src scanned through its descriptor.
func (c *session) passFile(src source) (answer, error) {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return answer{}, fmt.Errorf("clamd: descriptors need a unix socket, not %s", c.conn.RemoteAddr().Network())
	}
	at, err := src.offset()
	if err != nil {
		return answer{}, err
	}
	c.dirty, c.passed = true, true
	// One byte more than the command carries the descriptor.
	msg := append(c.scanCommand("FILDES"), 0)
	n, _, err := conn.WriteMsgUnix(msg, unix.UnixRights(src.fd), nil)
	if err == nil && n != len(msg) {
		err = io.ErrShortWrite
	}
	got, err := c.readScan(objectDescriptor, dropped(err))
	c.passed = err != nil
	return got, errors.Join(err, src.putBack(at))
}

// streamFile has the content of the file behind src scanned.
func (c *session) streamFile(src source) (answer, error) {
	c.dirty = true
	if c.chunk == nil {
		c.chunk = make([]byte, chunkSize)
	}
	err := c.sendStream(src)
	if err != nil && !errors.Is(err, errDropped) {
		return answer{}, err // The file's fault. clamd still waits for the rest: the session is lost.
	}
	return c.readScan(objectStream, err)
}

// sendStream sends the command and the content: chunks that each follow their
// length, four bytes in network order, and a length of zero at the end.
func (c *session) sendStream(src source) error {
	const length = 4
	buf := append(c.chunk[:0], c.scanCommand("INSTREAM")...)
	var offset int64
	for {
		start := len(buf)
		n, err := src.read(c.chunk[start+length:], offset)
		if err != nil {
			return err
		}
		offset += int64(n)
		if src.tooLarge(offset) {
			return errTooLarge
		}
		if n == 0 && offset < src.begin.size {
			return shrunk(offset, src.begin.size)
		}
		binary.BigEndian.PutUint32(c.chunk[start:], uint32(n)) //nolint:gosec // At most chunkSize.
		if err := c.write(c.chunk[:start+length+n]); err != nil || n == 0 {
			return err
		}
		buf = c.chunk[:0]
	}
}

// errTooLarge: the file grew beyond the limit while it was streamed.
var errTooLarge = errors.New("clamd: file is larger than clamd scans")

// readScan reads the replies to what scanCommand asked. sent is the error that
// ended the command early: then clamd may have said why before it hung up, but a
// file that it did not get whole is not clean whatever it says.
func (c *session) readScan(object string, sent error) (answer, error) {
	var got answer
	var err error
	if c.hasVersion {
		if got.gen, err = c.readVersion(c.id - 1); err != nil {
			return answer{}, err
		}
	}
	body, err := c.readReply(c.id)
	if err != nil {
		return answer{}, err
	}
	r, err := parseScan(body, object)
	if err != nil {
		return answer{}, err
	}
	if sent != nil && !r.refused {
		return answer{}, sent
	}
	c.dirty = r.refused
	got.verdict = r.verdict
	return got, nil
}

// scanCommand returns a scan command, with the question for the version before it.
func (c *session) scanCommand(name string) []byte {
	var b []byte
	if c.hasVersion {
		b = c.command(b, "VERSION")
	}
	return c.command(b, name)
}

// command appends a command and counts it.
func (c *session) command(b []byte, name string) []byte {
	c.id++
	b = append(b, 'z')
	b = append(b, name...)
	return append(b, 0)
}

func (c *session) write(b []byte) error {
	_, err := c.conn.Write(b)
	return dropped(err)
}

func (c *session) readVersion(id uint32) (scanner.Generation, error) {
	body, err := c.readReply(id)
	if err != nil {
		return "", err
	}
	return parseVersion(body)
}

// readReply returns the body of the reply to command id. It is valid until the
// next reply is read.
func (c *session) readReply(id uint32) ([]byte, error) {
	line, err := c.replies.ReadSlice(0)
	switch {
	case err == nil:
		return cutID(line[:len(line)-1], id)
	case len(line) == 0 || string(line) == goodbye:
		return nil, dropped(err)
	}
	what := fmt.Sprintf("no whole reply of at most %d bytes", maxLine)
	return nil, fmt.Errorf("%w: %w", protocolError(what, line), err)
}

// dropped marks an error of the connection.
func dropped(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errDropped, err)
}
