package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// callPatience is how long the keeper may take to answer; one that takes longer is
// stuck.
const callPatience = 2 * time.Second

// ErrRefused says that the keeper works and does not do what it was asked.
var ErrRefused = errors.New("refused by the keeper")

// A Client is a connection to a keeper. Its methods may be called by several
// goroutines; one that fails with anything but ErrRefused leaves it of no use.
type Client struct {
	conn *net.UnixConn
	peer peer
	end  sync.Once // of Close

	mu     sync.Mutex // one request at a time
	serial uint64     // of the last lease
	over   []uint64   // leases to be told of with the next request
	overMu sync.Mutex // guards over, and is held for a moment only
}

// Dial connects to the keeper at socket, which must be root's.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	c := &Client{conn: conn.(*net.UnixConn)} //nolint:errcheck,forcetypeassert // by the network's name
	if c.peer, err = peerOf(c.conn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if c.peer.uid != 0 {
		c.Close()
		return nil, fmt.Errorf("keeper: %s belongs to user %d, not root", socket, c.peer.uid)
	}
	return c, nil
}

// PID is the keeper's, in our pid namespace.
func (c *Client) PID() int { return c.peer.pid }

// Close ends the connection. For an agent that means that it is gone. Closing twice is
// harmless.
func (c *Client) Close() {
	c.end.Do(func() {
		_ = c.conn.Close()
		c.peer.close()
	})
}

// Kill ends a keeper that does not answer. What it alone holds is lost.
func (c *Client) Kill() error { return c.peer.kill() }

// Hello makes us the agent and takes everything over: entries are the caller's, with
// their descriptors. limit bounds the numbers that our descriptors will have.
func (c *Client) Hello(limit int) (Absence, []Entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply, err := c.call(&message{Op: opHello, Version: protocol, Limit: limit}, nil)
	if err != nil {
		return Absence{}, nil, err
	}
	entries := make([]Entry, 0, reply.Entries)
	for range reply.Entries {
		e, err := c.entry()
		if err != nil {
			for i := range entries {
				entries[i].Close()
			}
			return Absence{}, nil, err
		}
		entries = append(entries, e)
	}
	var a Absence
	if w := reply.Absence; w != nil {
		a = Absence{Since: w.Since, Why: w.Why, Limit: w.Limit, ClockMoved: w.Moved}
	}
	return a, entries, nil
}

// entry receives one entry.
func (c *Client) entry() (Entry, error) {
	m, err := c.receive()
	if err != nil {
		return Entry{}, err
	}
	defer m.close()
	return m.decodeEntry()
}

// Keep gives the keeper an entry to hold, or replaces the one with the same key. The
// descriptors stay the caller's.
func (c *Client) Keep(e *Entry) error {
	w, fds := encodeEntry(e)
	return c.do(&message{Op: opKeep, Entry: w}, fds)
}

// Forget tells that an entry is over. When it returns, the keeper has no descriptor
// of it any more.
func (c *Client) Forget(key string) error { return c.do(&message{Op: opForget, Key: key}, nil) }

// Lease gives the keeper a copy of a leased descriptor of an entry, so that the lease
// outlives us until the kernel's marks are gone. The serial is for [Client.Unlease].
func (c *Client) Lease(key string, fd int) (serial uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	_, err = c.call(&message{Op: opLease, Key: key, Serial: c.serial}, []int{fd})
	return c.serial, err
}

// Unlease tells that a lease is over. It does not wait: the keeper hears of it with
// the next request.
func (c *Client) Unlease(serial uint64) {
	c.overMu.Lock()
	defer c.overMu.Unlock()
	c.over = append(c.over, serial)
}

// Beat tells that events are being answered. It has to be called several times in
// the shortest grace time.
func (c *Client) Beat() error { return c.do(&message{Op: opBeat}, nil) }

// Release kills the agent and gives up everything that the keeper holds: containers
// go on unguarded. It returns how many containers there were.
func (c *Client) Release() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(callPatience + killPatience)); err != nil {
		return 0, fmt.Errorf("keeper: %w", err)
	}
	m, err := c.exchange(&message{Op: opRelease}, nil)
	if err != nil {
		return 0, err
	}
	return m.Entries, nil
}

// Status asks the keeper how it is. Anybody of root's may.
func (c *Client) Status() (*Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply, err := c.call(&message{Op: opStatus}, nil)
	if err != nil {
		return nil, err
	}
	st := reply.Status
	if st == nil {
		return nil, errors.New("keeper: reply without a status")
	}
	for range reply.Entries {
		m, err := c.receive()
		if err != nil {
			return nil, err
		}
		w := m.Entry
		if w == nil {
			return nil, errors.New("keeper: status without an entry")
		}
		fallback, err := fallbackNamed(w.Fallback)
		if err != nil {
			return nil, err
		}
		st.Entries = append(st.Entries, Held{
			Key: w.Key, Grace: w.Grace, Fallback: fallback, Leases: w.Leases,
			Pending: w.Pending, Answering: w.Answers, Answered: w.Answered,
		})
	}
	return st, nil
}

// do is call for those who need nothing but its success.
func (c *Client) do(m *message, files []int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.call(m, files)
	return err
}

// call sends a request and receives its reply. The caller holds mu.
func (c *Client) call(m *message, files []int) (*message, error) {
	if err := c.conn.SetDeadline(time.Now().Add(callPatience)); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return c.exchange(m, files)
}

func (c *Client) exchange(m *message, files []int) (*message, error) {
	c.overMu.Lock()
	// A message has room for some thousands; the rest goes with the next one.
	n := min(len(c.over), 1024)
	m.Unlease = c.over[:n:n]
	c.over = c.over[n:]
	c.overMu.Unlock()
	if err := send(c.conn, m, files); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return c.receive()
}

// receive receives a reply, whose descriptors are the caller's to close.
func (c *Client) receive() (*message, error) {
	m, err := receive(c.conn)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if m.Error != "" {
		m.close()
		return nil, fmt.Errorf("%w: %s", ErrRefused, m.Error)
	}
	return m, nil
}
