package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reapEvery is how often containers that have ended are looked for while there is
	// no agent to do so.
	reapEvery = time.Second
	// idlePatience is how long a keeper that ends by itself waits for an agent.
	idlePatience = 3 * time.Second
	// killPatience is how long an agent that was killed may take to be gone. What does
	// not end until then is in the kernel, and will never come back to answer.
	killPatience = 5 * time.Second
	// defaultLeaseBreak is the kernel's own (fs/locks.c).
	defaultLeaseBreak = 45 * time.Second
)

// Options configure a [Server].
type Options struct {
	Logger *slog.Logger // required
	// UntilIdle ends the keeper when there is neither an agent nor a container.
	UntilIdle bool
	Version   string // of the program, for the status
}

// A Server is the keeper.
type Server struct {
	opts    Options
	log     *slog.Logger
	started time.Time
	lost    chan struct{} // an agent is gone: look whether there is anything to keep

	// fallbacks lets them begin one after another, so that a new agent waits for one of
	// them, not for all.
	fallbacks sync.Mutex

	mu      sync.Mutex
	held    map[string]*holding
	agent   *session      // nil while there is none
	gone    *session      // the last agent; nil while there was none
	absence Absence       // the present one, or the last
	offset  time.Duration // clockOffset when it began
}

// NewServer returns a keeper that holds nothing.
func NewServer(o Options) *Server {
	now := time.Now()
	return &Server{opts: o, log: o.Logger, started: now, held: make(map[string]*holding), lost: make(chan struct{}, 1)}
}

// Serve takes connections until ctx is done, or until there is nothing left to keep
// if the options say so. Whatever is held then is given up. The listener is closed.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	go s.reap(ctx, cancel)
	var sessions sync.WaitGroup
	for {
		conn, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			s.log.Warn("accept", "error", err)
			<-time.After(100 * time.Millisecond) // out of descriptors, perhaps
			continue
		}
		sessions.Go(func() { s.session(ctx, conn) })
	}
	sessions.Wait()
	s.end()
	if cause := context.Cause(ctx); errors.Is(cause, errIdle) {
		s.log.Info("nothing to keep")
	}
	return nil
}

var errIdle = errors.New("nothing to keep")

// reap looks after containers that end, and after the keeper's own end.
func (s *Server) reap(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.lost:
		}
		if s.tidy() {
			cancel(errIdle)
			return
		}
	}
}

// tidy drops what has ended, unless an agent does that, and reports whether the
// keeper may end: it has nothing to keep, and has had an agent, or waited for one.
func (s *Server) tidy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	containers := 0
	for key, h := range s.held {
		switch {
		case s.agent == nil && h.exited():
			s.log.Info("container has ended", "entry", key)
			h.release()
			delete(s.held, key)
		case h.process >= 0:
			containers++
		}
	}
	if len(s.held) == 0 {
		s.letGo()
	}
	if s.agent != nil || containers > 0 || !s.opts.UntilIdle {
		return false
	}
	return !s.absence.Since.IsZero() || time.Since(s.started) > idlePatience
}

// end gives everything up.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, h := range s.held {
		h.settle()
		h.close()
		delete(s.held, key)
	}
	s.letGo()
}

// copyOf returns a holding for the next agent, with descriptors of its own.
func (s *Server) copyOf(h *holding) (Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := h.Entry
	h.Answered = 0
	var err error
	e.Files, err = h.files()
	return e, err
}

// keep holds an entry for the agent.
func (s *Server) keep(e Entry) error {
	h, err := hold(e)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.held[e.Key]; old != nil {
		h.leases, old.leases = old.leases, nil
		old.close()
	}
	s.held[e.Key] = h
	return nil
}

// forget drops an entry, and returns when none of its descriptors is left. An unknown
// one is no error: it may have ended before.
func (s *Server) forget(key string) {
	s.mu.Lock()
	h := s.held[key]
	if h != nil {
		h.close()
		delete(s.held, key)
	}
	s.mu.Unlock()
	if h == nil {
		return
	}
	for _, g := range h.groups {
		<-g.Closed() // nobody reads it: there is an agent
	}
}

// lease holds a copy of a leased descriptor, which it takes over.
func (s *Server) lease(key string, serial uint64, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[key]
	if h == nil || h.leases[serial] != 0 {
		_ = unix.Close(fd)
		return fmt.Errorf("no entry %q for lease %d", key, serial)
	}
	h.leases[serial] = fd
	return nil
}

// unlease closes the copies of leases that are over.
func (s *Server) unlease(serials []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, serial := range serials {
		for _, h := range s.held {
			if fd, ok := h.leases[serial]; ok {
				_ = unix.Close(fd)
				delete(h.leases, serial)
			}
		}
	}
}

// release kills the agent and gives everything up: marks go, whatever waits is
// allowed. It returns how many containers there were.
func (s *Server) release() int {
	s.killAgent("somebody asks to release every container")
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for key, h := range s.held {
		if h.process >= 0 { // and not a group that several share
			n++
		}
		h.release()
		delete(s.held, key)
	}
	s.log.Warn("released everything: what runs goes on unguarded", "containers", n)
	return n
}

// status describes the keeper.
func (s *Server) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Version: s.opts.Version, PID: os.Getpid(), Started: s.started, Since: s.absence.Since, Why: s.absence.Why,
		Entries: make([]Held, 0, len(s.held)),
	}
	if s.agent != nil {
		st.Agent = s.agent.peer.pid
	}
	for _, h := range s.held {
		st.Entries = append(st.Entries, h.status())
	}
	return st
}
