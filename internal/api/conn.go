package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	noDescriptor = -1
	// maxReceived is how many descriptors one read takes from the kernel; it
	// drops the rest itself. More than one are refused anyway.
	maxReceived = 4
)

// A conn is a trusted peer's connection. It collects the descriptor that may
// come with a request: one, together with the request's first bytes. The conn
// owns the descriptor until a handler claims it.
type conn struct {
	*net.UnixConn
	oob [maxReceived*4 + unix.SizeofCmsghdr]byte // reads come one after another

	mu      sync.Mutex
	fd      int  // noDescriptor if there is none
	surplus bool // more than one came; all were closed
	closed  bool
}

// Read reads bytes and keeps a descriptor that comes with them.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty read for a descriptor would eat a byte
	}
	n, oobn, flags, _, err := c.ReadMsgUnix(p, c.oob[:])
	fds, truncated := received(c.oob[:max(oobn, 0)]), flags&unix.MSG_CTRUNC != 0
	if len(fds) > 0 || truncated {
		c.keep(fds, truncated)
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // net/http compares it
	}
	return max(n, 0), err // -1 comes with an error
}

// received returns the descriptors in control messages from the kernel, which
// are well-formed even if they are truncated. Anything else yields none.
func received(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		// ParseUnixRights panics over half a descriptor.
		msgs[i].Data = msgs[i].Data[:len(msgs[i].Data)/4*4]
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// keep takes over received descriptors, of which some are missing if truncated.
func (c *conn) keep(fds []int, truncated bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(fds) == 1 && c.fd == noDescriptor && !c.closed && !truncated {
		c.fd = fds[0]
		return
	}
	c.surplus = true
	for _, fd := range append(fds, c.fd) {
		closeDescriptor(fd)
	}
	c.fd = noDescriptor
}

// take hands the descriptor to the caller, who closes it.
func (c *conn) take() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	const remedy = "send exactly one descriptor with the first bytes of the request (SCM_RIGHTS)"
	if c.surplus {
		return noDescriptor, refusef(http.StatusBadRequest, remedy, "more than one descriptor came with the request, or the agent has no room for one")
	}
	if c.fd == noDescriptor {
		return noDescriptor, refusef(http.StatusBadRequest, remedy, "no descriptor came with the request")
	}
	fd := c.fd
	c.fd = noDescriptor
	return fd, nil
}

// drop closes what no handler has claimed.
func (c *conn) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	closeDescriptor(c.fd)
	c.fd, c.surplus = noDescriptor, false
}

// Close closes the connection and an unclaimed descriptor.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.drop()
	return c.UnixConn.Close()
}

func closeDescriptor(fd int) {
	if fd != noDescriptor {
		_ = unix.Close(fd) // never retried: the number is free even after an error
	}
}

// A connKey finds the connection of a request in its context.
type connKey struct{}

func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// connOf returns the connection of a request, which [Listener.Accept] made.
func connOf(ctx context.Context) (*conn, bool) {
	c, ok := ctx.Value(connKey{}).(*conn)
	return c, ok
}
