package clamd

import (
	"context"
	"time"
)

// refreshLoop keeps the generation current until the scanner is closed, on a
// session of its own: those of the pool may all be busy for long.
func (s *Scanner) refreshLoop() {
	var c *session
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	tick := time.NewTicker(s.opts.RefreshInterval)
	defer tick.Stop()
	for {
		c = s.refresh(c)
		s.pool.expire(time.Now())
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
	}
}

// refresh asks for the generation on c, or on a new session if there is none or
// c does not answer. It returns the session to use next, or nil.
func (s *Scanner) refresh(c *session) *session {
	if c != nil && c.reusable() {
		ctx, cancel := context.WithTimeout(s.life, s.opts.DialTimeout)
		forget := context.AfterFunc(ctx, c.close)
		asked := s.know.ask()
		gen, err := c.ask()
		open := forget()
		cancel()
		if err == nil && open {
			s.know.learn(asked, gen)
			return c
		}
	}
	if c != nil {
		c.close()
	}
	c, err := s.dial(s.life)
	if err != nil {
		return nil // Scans and Health meet the same error and report it.
	}
	return c
}
