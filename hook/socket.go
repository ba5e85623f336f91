package hook

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// A conn is a connection to the agent. Every operation ends by the deadline.
type conn struct {
	fd       int
	socket   string
	deadline time.Time
}

// dial connects to the agent and makes sure that it is root's.
func dial(socket string, deadline time.Time) (*conn, error) {
	addr := &syscall.SockaddrUnix{Name: socket}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create a socket: %w", err)
	}
	c := &conn{fd: fd, socket: socket, deadline: deadline}
	err = c.retry(syscall.SO_SNDTIMEO, func() error { return syscall.Connect(fd, addr) })
	if err == nil {
		err = c.checkPeer()
	}
	if err != nil {
		c.close()
		return nil, connectError(socket, err)
	}
	return c, nil
}

func connectError(socket string, err error) error {
	const start = "start assayd, or point --socket at its socket"
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: connect to %s: %w (%s)", ErrAgentMissing, socket, err, start)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("connect to %s: %w (only root can announce a container: rootless containers cannot be guarded)", socket, err)
	default:
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
}

// checkPeer fails unless root made the socket listen. Without it, whoever gets
// to put a socket in the agent's place could call every container guarded.
func (c *conn) checkPeer() error {
	cred, err := syscall.GetsockoptUcred(c.fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("%w but by uid %d, pid %d (stop that process, and keep the socket in a directory that only root can write)",
			ErrForeignSocket, cred.Uid, cred.Pid)
	}
	return nil
}

// roundTrip sends the request and returns the reply to it.
func (c *conn) roundTrip(request []byte) (*reply, error) {
	if err := c.send(request); err != nil {
		return nil, err
	}
	var buf [maxReply + 1]byte
	for have := 0; ; {
		n, err := c.receive(buf[have:])
		if err != nil {
			return nil, err
		}
		have += n
		if have == 0 {
			return nil, fmt.Errorf("%w: %w", ErrReply, errHungUp)
		}
		if have > maxReply {
			return nil, fmt.Errorf("%w: it has more than %d bytes", ErrReply, maxReply)
		}
		r, err := parseReply(buf[:have], n == 0)
		if err != nil || r != nil {
			return r, err
		}
	}
}

// send writes all of data. An agent that has replied and closed without reading
// to the end is no error here: its reply tells more.
func (c *conn) send(data []byte) error {
	for len(data) > 0 {
		var n int
		err := c.retry(syscall.SO_SNDTIMEO, func() (err error) { n, err = syscall.Write(c.fd, data); return err })
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("send to %s: %w", c.socket, err)
		}
		data = data[n:]
	}
	return nil
}

// receive reads into buf; 0 means that the agent closed the connection.
func (c *conn) receive(buf []byte) (n int, err error) {
	err = c.retry(syscall.SO_RCVTIMEO, func() (err error) { n, err = syscall.Read(c.fd, buf); return err })
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("receive from %s: %w", c.socket, err)
	}
	return n, nil
}

// retry calls op with the socket's timeout (SO_SNDTIMEO or SO_RCVTIMEO) set to
// what is left, again after EINTR, and turns running out of it into ErrTimeout.
// Connecting counts too: it waits when the agent's backlog is full.
func (c *conn) retry(option int, op func() error) error {
	for {
		left := time.Until(c.deadline)
		if left <= 0 {
			return ErrTimeout
		}
		// A zero timeval would mean forever.
		tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, option, &tv); err != nil {
			return fmt.Errorf("set the socket's timeout: %w", err)
		}
		switch err := op(); {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return ErrTimeout
		default:
			return err
		}
	}
}

func (c *conn) close() {
	// Nothing depends on it: the process is about to end.
	_ = syscall.Close(c.fd)
}
