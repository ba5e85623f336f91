package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/pidfd"
)

// replyPatience is how long a peer may take to read a reply.
const replyPatience = 2 * time.Second

// leastPatience is how long an agent whose time is over is listened to once more:
// what it has said may be in the queue.
const leastPatience = 10 * time.Millisecond

// A session is one connection. Its requests are served one after another.
type session struct {
	server *Server
	conn   *net.UnixConn
	peer   peer
	agent  bool // it said hello
	limit  int  // of the agent's descriptor numbers
	heard  time.Time
}

// session serves a connection until it ends.
func (s *Server) session(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	p, err := peerOf(conn)
	if err == nil && p.uid != 0 {
		err = fmt.Errorf("user %d is not root", p.uid)
	}
	if err != nil {
		s.log.Warn("connection turned away", "error", err)
		return
	}
	c := &session{server: s, conn: conn, peer: p, heard: time.Now()}
	why := c.serve()
	if c.agent && ctx.Err() == nil {
		s.lose(c, c.lostAt(why), why.Error())
		return // and who it was is remembered until the next one is lost
	}
	p.close()
}

// lostAt is when openers began to wait: when the agent ended, or was last heard of.
func (c *session) lostAt(why error) time.Time {
	if errors.Is(why, os.ErrDeadlineExceeded) {
		return c.heard
	}
	return time.Now()
}

// serve answers requests and returns why there are no more.
func (c *session) serve() error {
	for {
		deadline := c.deadline()
		m, err := c.receive(deadline)
		if c.agent && errors.Is(err, os.ErrDeadlineExceeded) {
			// We may have been stopped ourselves, or the whole machine, and then its
			// beats are in the queue, or it needs the time that we missed.
			late := min(time.Since(deadline), c.server.patience())
			m, err = c.receive(time.Now().Add(max(late, leastPatience)))
		}
		switch {
		case errors.Is(err, io.EOF):
			return errEnded
		case c.agent && errors.Is(err, os.ErrDeadlineExceeded):
			why := fmt.Errorf("it was stuck for %v: %w", time.Since(c.heard).Round(time.Millisecond), err)
			c.kill(why.Error())
			return why
		case err != nil:
			return err
		}
		c.heard = time.Now()
		err = c.request(m)
		m.close()
		if err != nil {
			return err
		}
	}
}

var errEnded = errors.New("its connection ended")

// receive receives a request. No time is no deadline.
func (c *session) receive(deadline time.Time) (*message, error) {
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	return receive(c.conn)
}

// deadline is when an agent has been silent for too long.
func (c *session) deadline() time.Time {
	if c.agent {
		if patience := c.server.patience(); patience > 0 {
			return time.Now().Add(patience)
		}
	}
	return time.Time{}
}

// request serves one request. The error ends the session.
func (c *session) request(m *message) error {
	switch {
	case m.Op == opHello && m.Version != protocol:
		return c.reply(&message{Version: protocol}, fmt.Errorf("the keeper speaks version %d, not %d", protocol, m.Version))
	case m.Op == opHello:
		return c.hello(m)
	case m.Op == opStatus:
		return c.status()
	case m.Op == opRelease:
		return c.reply(&message{Entries: c.server.release()}, nil)
	case !c.agent:
		return c.reply(&message{}, fmt.Errorf("%q is only for the agent", m.Op))
	}
	c.server.unlease(m.Unlease)
	return c.reply(&message{}, c.change(m))
}

// change does what the agent asks.
func (c *session) change(m *message) error {
	switch m.Op {
	case opKeep:
		e, err := m.decodeEntry()
		if err != nil {
			return err
		}
		return c.server.keep(e)
	case opForget:
		c.server.forget(m.Key)
		return nil
	case opLease:
		if len(m.files) != 1 {
			return fmt.Errorf("%d descriptors arrived of 1 (out of descriptors?)", len(m.files))
		}
		fd := m.files[0]
		m.files = nil
		return c.server.lease(m.Key, m.Serial, fd)
	case opBeat:
		return nil
	}
	return fmt.Errorf("unknown request %q", m.Op)
}

// hello makes the peer the agent and gives it everything.
func (c *session) hello(m *message) error {
	a, all, err := c.server.takeOver(c, m.Limit)
	if err != nil {
		return c.reply(&message{}, err)
	}
	c.agent = true
	reply := &message{
		Entries: len(all),
		Absence: &absence{Since: a.Since, Why: a.Why, Limit: a.Limit, Moved: a.ClockMoved},
	}
	if err := c.reply(reply, nil); err != nil {
		return err
	}
	for _, h := range all {
		if err := c.give(h); err != nil {
			return err
		}
	}
	return nil
}

// give sends a holding to the agent. One that cannot be sent ends the session: an
// agent that took the rest for everything would leave containers alone.
func (c *session) give(h *holding) error {
	e, err := c.server.copyOf(h)
	if err != nil {
		e.Close()
		return errors.Join(err, c.reply(&message{}, err))
	}
	defer e.Close()
	w, fds := encodeEntry(&e)
	return c.send(&message{Entry: w}, fds)
}

// status tells anybody of root's what is held.
func (c *session) status() error {
	st := c.server.status()
	if err := c.reply(&message{Status: &st, Entries: len(st.Entries)}, nil); err != nil {
		return err
	}
	for _, h := range st.Entries {
		w := &entry{
			Key: h.Key, Grace: h.Grace, Fallback: h.Fallback.String(),
			Answered: h.Answered, Leases: h.Leases, Pending: h.Pending, Answers: h.Answering,
		}
		if err := c.send(&message{Entry: w}, nil); err != nil {
			return err
		}
	}
	return nil
}

// reply answers a request, with an error if there is one: which the session survives.
func (c *session) reply(m *message, failed error) error {
	if failed != nil {
		m.Error = failed.Error()
		c.server.log.Warn("request refused", "pid", c.peer.pid, "error", failed)
	}
	return c.send(m, nil)
}

func (c *session) send(m *message, files []int) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(replyPatience)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return send(c.conn, m, files)
}

// kill ends the agent, and returns when it will answer nothing any more.
func (c *session) kill(why string) {
	log := c.server.log.With("pid", c.peer.pid)
	log.Error("the agent is killed", "why", why)
	if err := c.peer.kill(); err != nil {
		log.Error("the agent does not end", "error", err)
	}
}

// A peer is the process at the other end of a connection.
type peer struct {
	pid   int // in our pid namespace; 0 if it is not in it
	uid   int
	pidfd int
}

// peerOf tells who has connected.
func peerOf(conn *net.UnixConn) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("peer: %w", err)
	}
	p := peer{pidfd: -1}
	controlled := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		p.pid, p.uid = int(cred.Pid), int(cred.Uid)
		// By the socket (6.5) it cannot be another process that has the number now.
		if p.pidfd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err != nil {
			p.pidfd, err = unix.PidfdOpen(p.pid, 0)
		}
	})
	if err = errors.Join(controlled, err); err != nil {
		return peer{}, fmt.Errorf("peer: %w", err)
	}
	return p, nil
}

// kill kills the process and waits for its end.
func (p *peer) kill() error {
	if err := pidfd.Kill(p.pidfd, killPatience); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}

// duplicate returns the peer with a descriptor of its own, which the caller closes.
func (p *peer) duplicate() (peer, error) {
	fd, err := pidfd.Duplicate(p.pidfd)
	return peer{pid: p.pid, uid: p.uid, pidfd: fd}, err
}

func (p *peer) close() { _ = unix.Close(p.pidfd) }
