package clamd

import (
	"context"
	"sync"
	"time"
)

// A pool holds the idle sessions and bounds the number in use.
type pool struct {
	slots chan struct{} // one taken for each scan under way
	idle  time.Duration // how long an unused session is kept

	mu     sync.Mutex
	free   []*session // least recently used first
	closed bool
}

func newPool(size int, idle time.Duration) *pool {
	return &pool{slots: make(chan struct{}, size), idle: idle}
}

// enter takes a slot, or returns the error of ctx if that ends first. leave gives
// it back.
func (p *pool) enter(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pool) leave() { <-p.slots }

// take returns an idle session that clamd has not closed, or nil.
func (p *pool) take() *session {
	for {
		c := p.pop()
		if c == nil || c.alive() {
			return c
		}
		c.close()
	}
}

func (p *pool) pop() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.free) - 1
	if last < 0 {
		return nil
	}
	c := p.free[last]
	p.free = p.free[:last]
	return c
}

// put keeps c for the next scan, or closes it if it cannot be used again.
func (p *pool) put(c *session) {
	p.mu.Lock()
	keep := !p.closed && c.reusable()
	if keep {
		c.used = time.Now()
		p.free = append(p.free, c)
	}
	p.mu.Unlock()
	if !keep {
		c.close()
	}
}

// expire closes sessions that were not used lately.
func (p *pool) expire(now time.Time) {
	p.mu.Lock()
	n := 0
	for n < len(p.free) && now.Sub(p.free[n].used) >= p.idle {
		n++
	}
	old := p.free[:n:n]
	p.free = p.free[n:]
	p.mu.Unlock()
	closeAll(old)
}

// close closes all idle sessions and keeps nothing from now on.
func (p *pool) close() {
	p.mu.Lock()
	old := p.free
	p.free, p.closed = nil, true
	p.mu.Unlock()
	closeAll(old)
}

func closeAll(sessions []*session) {
	for _, c := range sessions {
		c.close()
	}
}
