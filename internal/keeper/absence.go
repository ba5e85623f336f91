package keeper

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/pidfd"
)

// lose notes that the agent of a session is gone, and does what cannot wait.
func (s *Server) lose(gone *session, since time.Time, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != gone {
		gone.peer.close()
		return
	}
	// Marks first, of all groups: several containers can share one. Then leases.
	for _, h := range s.held {
		h.flush()
	}
	for _, h := range s.held {
		h.unlease()
	}
	s.agent = nil
	s.letGo()
	s.gone = gone
	if len(s.held) == 0 { // nobody will be answered
		s.letGo()
	}
	s.absence = Absence{Since: since, Why: why, Limit: gone.limit}
	s.offset = clockOffset()
	for _, h := range s.held {
		h.timer = time.AfterFunc(h.Grace-time.Since(since), func() { s.fallback(h) })
	}
	select {
	case s.lost <- struct{}{}:
	default:
	}
	s.log.Warn("the agent is gone", "pid", gone.peer.pid, "why", why, "entries", len(s.held))
}

// letGo forgets who the last agent was. The caller holds s.mu.
func (s *Server) letGo() {
	if s.gone != nil {
		s.gone.peer.close()
		s.gone = nil
	}
}

// fallback begins to answer for an agent that did not come in time.
func (s *Server) fallback(h *holding) {
	s.fallbacks.Lock()
	defer s.fallbacks.Unlock()
	s.fence()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil || s.held[h.Key] != h || h.answering() {
		return
	}
	if err := h.answer(s.absence.Limit); err != nil {
		s.log.Error("openers cannot be answered; they wait for the next agent", "error", err)
		return
	}
	s.log.Warn("no agent within the grace time: openers are answered by the fallback",
		"entry", h.Key, "grace", h.Grace, "fallback", h.Fallback)
}

// fence ends an agent that has lost its connection and lives: it could still answer.
func (s *Server) fence() {
	last, ok := s.lastAgent()
	if !ok {
		return
	}
	defer last.close()
	if last.pid == os.Getpid() || pidfd.Exited(last.pidfd, 0) {
		return
	}
	s.log.Error("the agent is killed: its connection has ended and it has not, and its containers' openers are to be answered", "pid", last.pid)
	if err := last.kill(); err != nil {
		s.log.Error("the agent does not end", "error", err)
	}
}

// lastAgent returns the agent that is gone, with a descriptor of the caller's own,
// unless there is another one.
func (s *Server) lastAgent() (peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil || s.gone == nil {
		return peer{}, false
	}
	last, err := s.gone.peer.duplicate()
	if err != nil {
		s.log.Error("whether the last agent has ended cannot be told", "error", err)
	}
	return last, err == nil
}

// takeOver makes a session the agent's, and returns what it takes over.
func (s *Server) takeOver(next *session, limit int) (Absence, []*holding, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil {
		return Absence{}, nil, fmt.Errorf("another agent (pid %d) is at work", s.agent.peer.pid)
	}
	next.limit = limit
	s.agent = next
	a := s.absence
	if !a.Since.IsZero() {
		a.ClockMoved = (clockOffset() - s.offset).Abs()
	}
	all := make([]*holding, 0, len(s.held))
	for _, h := range s.held {
		h.settle()
		all = append(all, h)
	}
	s.log.Info("an agent is here", "pid", next.peer.pid, "entries", len(all))
	return a, all, nil
}

// patience is how long the agent may say nothing: the shortest grace time, and less
// than the kernel's patience with the holder of a lease, after which it would let a
// writer past a mark. 0 means for ever.
func (s *Server) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var least time.Duration
	leases := 0
	for _, h := range s.held {
		if least == 0 || h.Grace < least {
			least = h.Grace
		}
		leases += len(h.leases)
	}
	if leases > 0 {
		least = min(least, leaseBreakTime()*2/3)
	}
	return least
}

// leaseBreakTime is how long the kernel waits for the holder of a lease
// (fs.lease-break-time, in seconds; 0 is for ever).
func leaseBreakTime() time.Duration {
	text, err := os.ReadFile("/proc/sys/fs/lease-break-time")
	if err != nil {
		return defaultLeaseBreak
	}
	seconds, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil:
		return defaultLeaseBreak
	case seconds <= 0:
		return math.MaxInt64 / 2
	}
	return time.Duration(seconds) * time.Second
}

// clockOffset tells how far the wall clock is ahead of the time since boot.
func clockOffset() time.Duration {
	var wall, boot unix.Timespec
	// Neither clock can be missing.
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	return time.Duration(wall.Nano() - boot.Nano())
}

// killAgent kills the agent, if there is one, and returns when it will answer nothing
// any more.
func (s *Server) killAgent(why string) {
	s.mu.Lock()
	agent := s.agent
	var p peer
	err := errNoAgent
	if agent != nil {
		p, err = agent.peer.duplicate() // its session may end at any moment
	}
	s.mu.Unlock()
	if err != nil {
		return
	}
	defer p.close()
	s.log.Error("the agent is killed", "pid", p.pid, "why", why)
	if err := p.kill(); err != nil {
		s.log.Error("the agent does not end", "pid", p.pid, "error", err)
	}
}

var errNoAgent = errors.New("there is no agent")
