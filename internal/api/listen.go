package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/lockfile"
)

const (
	// maxSocketPath is what sun_path holds, in bytes, without its final zero (unix(7)).
	maxSocketPath = 107
	// refusalTime is how long a foreign peer may take to send what it has and
	// read its refusal.
	refusalTime = time.Second
	// maxRefusals bounds the foreign peers that are answered at the same time;
	// more are hung up on.
	maxRefusals = 16
)

// Reasons for which [Listen] fails, besides plain system errors.
var (
	ErrInUse        = errors.New("another agent uses the socket")
	ErrUnsafeSocket = errors.New("the socket's place is not safe")
)

// A Listener is the agent's socket. It hands out connections of root and of the
// agent's own user only; everyone else gets a refusal.
type Listener struct {
	unix     *net.UnixListener
	lock     *os.File
	refusals chan struct{} // a token for each foreign peer being answered
	once     sync.Once
	closeErr error
}

// Listen makes the socket at path, an absolute path of at most 107 bytes, with
// mode 0600, and its directory with mode 0755 if there is none. A socket that a
// dead agent left is replaced; [ErrInUse] says that an agent lives and names its
// pid. [ErrUnsafeSocket] says that path is something other than a socket of
// root's, or that others than root could replace it.
func Listen(path string) (*Listener, error) {
	if !filepath.IsAbs(path) || len(path) > maxSocketPath {
		return nil, fmt.Errorf("%w: %q is not an absolute path of at most %d bytes (set `socket` to one)",
			ErrUnsafeSocket, path, maxSocketPath)
	}
	path = filepath.Clean(path)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	if err := checkDirectories(dir); err != nil {
		return nil, err
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	ln, err := replaceSocket(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Listener{unix: ln, lock: lock, refusals: make(chan struct{}, maxRefusals)}, nil
}

// checkDirectories makes sure that nobody but root, or the agent's own user,
// can put something else in the place of dir or of what is in it.
func checkDirectories(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("directory of the socket: %w", err)
	}
	for _, leaf := range []string{dir, resolved} {
		// Above the leaf, the sticky bit keeps others from renaming it.
		for d, sticky := leaf, fs.FileMode(0); ; d, sticky = filepath.Dir(d), fs.ModeSticky {
			if err := checkDirectory(d, sticky); err != nil {
				return err
			}
			if d == "/" {
				break
			}
		}
	}
	return nil
}

// checkDirectory checks one directory. Others may write to it only if it has
// the mode bits of despite.
func checkDirectory(dir string, despite fs.FileMode) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("directory of the socket: %w", err)
	}
	if uid := owner(info); !trusted(uid) {
		return fmt.Errorf("%w: the directory %s belongs to uid %d (chown root %[2]s, or set `socket` to another place)",
			ErrUnsafeSocket, dir, uid)
	}
	if info.Mode()&0o022 != 0 && info.Mode()&despite == 0 {
		return fmt.Errorf("%w: others may write to the directory %s (chmod go-w %[2]s, or set `socket` to another place)",
			ErrUnsafeSocket, dir)
	}
	return nil
}

func owner(info fs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return ^uint32(0) // nobody we trust
}

// lockSocket takes the lock next to the socket, which an agent holds as long as it
// lives.
func lockSocket(path string) (*os.File, error) {
	fd, err := lockfile.Take(path+".lock", 0)
	if errors.Is(err, lockfile.ErrHeld) {
		err = inUse(path, "pid "+holder(path+".lock"))
	}
	if err != nil {
		return nil, fmt.Errorf("lock of the socket: %w", err)
	}
	return os.NewFile(uintptr(fd), path+".lock"), nil
}

// holder names the process that has the lock.
func holder(lock string) string {
	if pid, err := lockfile.PID(lock); err == nil && pid != 0 {
		return strconv.Itoa(pid)
	}
	return "unknown"
}

func inUse(path, who string) error {
	return fmt.Errorf("%w: %s: %s (stop it, such as with systemctl stop assayd, or set `socket` to another place)",
		ErrInUse, path, who)
}

// replaceSocket binds a new socket where at most a dead agent's stands. The
// caller holds the lock.
func replaceSocket(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// unix_bind() in net/unix/af_unix.c takes the new file's mode from the
	// unbound socket's: there is no moment at which it is wider than 0600.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(ctlErr, err)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("make the socket: it is a %T", ln), ln.Close())
	}
	return u, nil
}

// removeStale removes the socket of an agent that is gone.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("old socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s is not a socket (move it away, or set `socket` to another place)", ErrUnsafeSocket, path)
	}
	if uid := owner(info); !trusted(uid) {
		return fmt.Errorf("%w: %s belongs to uid %d (find out who made it, then remove it)", ErrUnsafeSocket, path, uid)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(inUse(path, "something else listens on it"), c.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("old socket: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("old socket: %w", err)
	}
	return nil
}

// Accept returns the next connection of a trusted peer.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, passing(err)
		}
		cred, err := peer(c)
		switch {
		case err != nil:
			_ = c.Close() // gone already
		case !trusted(cred.Uid):
			l.turnAway(c, cred.Uid)
		default:
			return &conn{UnixConn: c, fd: noDescriptor}, nil
		}
	}
}

// passing marks an error of accept(2) that comes of the machine's want of memory as one
// after which net/http tries again, as it does by itself for a want of descriptors. The
// agent would else end, and with it all guarding, for a moment's shortage.
func passing(err error) error {
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
		return shortage{err}
	}
	return err
}

// A shortage is an error that passes: a net.Error.
type shortage struct{ error }

func (shortage) Timeout() bool   { return false }
func (shortage) Temporary() bool { return true }
func (s shortage) Unwrap() error { return s.error }

// turnAway answers a foreign peer without keeping Accept. The goroutine ends
// within refusalTime.
func (l *Listener) turnAway(c *net.UnixConn, uid uint32) {
	select {
	case l.refusals <- struct{}{}:
		go func() {
			defer func() { <-l.refusals }()
			refuse(c, uid)
		}()
	default:
		_ = c.Close()
	}
}

// refuse answers the peer's first bytes with a refusal, reads the rest of what
// it sends so that the reply is not lost in a reset, and hangs up. Descriptors
// that come along are dropped by the kernel, since nothing is read but bytes.
func refuse(c *net.UnixConn, uid uint32) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(refusalTime)); err != nil {
		return
	}
	if _, err := c.Read(make([]byte, 4096)); err != nil {
		return
	}
	status, body := encodeError(refusef(http.StatusForbidden, "run it as root",
		"uid %d may not use the agent's socket", uid))
	_, err := fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), jsonType, len(body), body)
	if err != nil || c.CloseWrite() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c) // the deadline ends it
}

// Close removes the socket and lets the next agent have it.
func (l *Listener) Close() error {
	l.once.Do(func() { l.closeErr = errors.Join(l.unix.Close(), l.lock.Close()) })
	return l.closeErr
}

// Addr returns the socket's address.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }
