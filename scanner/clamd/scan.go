package clamd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/assay-project/assay/scanner"
)

// Scan asks clamd about f. Besides what [scanner.Scanner] says: an Error verdict
// wraps scanner.ErrUnavailable if clamd cannot be reached, closed the connection
// or is not tried again yet, scanner.ErrProtocol if its reply was not understood,
// and scanner.ErrRead if f could not be read or ended early.
func (s *Scanner) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	if err := ctx.Err(); err != nil {
		return s.failed(ctx, err)
	}
	src, err := openSource(f, s.opts.MaxFileSize)
	if err != nil {
		return s.failed(ctx, err)
	}
	if src.tooLarge(max(f.Size, src.begin.size)) {
		return scanner.UnscannableVerdict(scanner.ReasonTooLarge, s.Generation())
	}
	if err := s.pool.enter(ctx); err != nil {
		return s.failed(ctx, err)
	}
	defer s.pool.leave()
	got, err := s.scanPooled(ctx, src)
	switch {
	case errors.Is(err, errTooLarge):
		return scanner.UnscannableVerdict(scanner.ReasonTooLarge, s.Generation())
	case err != nil:
		return s.failed(ctx, err)
	}
	return s.label(got, src.changed())
}

// scanPooled scans on an idle session, or on a new one if there is none. If clamd
// has closed the idle one meanwhile (a restart), a new one is tried once.
func (s *Scanner) scanPooled(ctx context.Context, src source) (answer, error) {
	if c := s.pool.take(); c != nil {
		got, err := s.scanOn(ctx, c, src)
		if !errors.Is(err, errDropped) || ctx.Err() != nil {
			return got, err
		}
	}
	c, err := s.dial(ctx)
	if err != nil {
		return answer{}, err
	}
	return s.scanOn(ctx, c, src)
}

// scanOn scans on c and gives c back to the pool.
func (s *Scanner) scanOn(ctx context.Context, c *session, src source) (answer, error) {
	release := s.bind(ctx, c)
	defer release()
	if s.network != "unix" || src.rar {
		return s.asked(c.streamFile, src)
	}
	got, err := s.asked(c.passFile, src)
	if err == nil && got.verdict.Outcome == scanner.Clean && src.changed() {
		// clamd gives up quietly on a file that changes: read it ourselves.
		return s.asked(c.streamFile, src)
	}
	return got, err
}

// asked has src scanned and notes the generation that came with the answer.
func (s *Scanner) asked(scan func(source) (answer, error), src source) (answer, error) {
	asked := s.know.ask()
	got, err := scan(src)
	if err == nil {
		s.know.learn(asked, got.gen)
	}
	return got, err
}

// bind makes whoever waits on c give up with ctx, and c end with the scanner. release
// undoes that and gives c back to the pool.
func (s *Scanner) bind(ctx context.Context, c *session) (release func()) {
	interrupted := make(chan struct{})
	forgetCtx := context.AfterFunc(ctx, func() {
		c.interrupt()
		close(interrupted)
	})
	forgetLife := context.AfterFunc(s.life, c.close) //nolint:contextcheck // The scanner's own end, besides the caller's.
	return func() {
		inTime := forgetCtx()
		switch {
		case !forgetLife():
			c.dirty = true // closed, or about to be
		case !inTime:
			<-interrupted
			c.dirty = true
			if c.passed && s.linger(c) {
				return
			}
		}
		s.pool.put(c)
	}
}

// linger closes a session whose scan was given up as soon as clamd has understood that
// scan's command. A clamd whose client hangs up before that forgets to close the
// descriptor that came with the command, for ever (seen with 1.4), and so keeps the
// file's filesystem busy; after it, hanging up ends the scan. It reports whether there
// was room for one more; the session is the caller's if not.
func (s *Scanner) linger(c *session) bool {
	select {
	case s.lingering <- struct{}{}:
	default:
		return false
	}
	s.running.Go(func() {
		defer func() { <-s.lingering }()
		defer c.close()
		defer context.AfterFunc(s.life, c.close)()
		if c.conn.SetDeadline(time.Now().Add(s.lingerTime)) == nil {
			c.awaitUnderstood()
		}
	})
	return true
}

// endWith calls end once ctx is done or the scanner is closed, unless forget is
// called before. forget reports whether it was in time.
func (s *Scanner) endWith(ctx context.Context, end func()) (forget func() bool) {
	forgetCtx := context.AfterFunc(ctx, end)
	forgetLife := context.AfterFunc(s.life, end) //nolint:contextcheck // The scanner's own end, besides the caller's.
	return func() bool {
		inTime := forgetCtx()
		return forgetLife() && inTime
	}
}

// label makes a verdict of what clamd said. It may be remembered if the file
// stayed as it was and clamd's knowledge is still what the answer came from.
func (s *Scanner) label(got answer, changed bool) scanner.Verdict {
	v := got.verdict
	if v.Outcome == scanner.Error {
		return v
	}
	if got.gen.Matches(s.Generation()) {
		v.Generation = got.gen
	}
	v.Mark = v.Generation != "" && !changed && v.Outcome != scanner.Unscannable
	return v
}

// failed returns the Error verdict for err. Whatever a connection says when its
// context has ended is that context's doing.
func (s *Scanner) failed(ctx context.Context, err error) scanner.Verdict {
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("clamd: scan given up: %w", ctx.Err())
	case s.life.Err() != nil:
		err = errClosed
	case errors.Is(err, errDropped):
		err = unavailable(err)
	}
	return scanner.ErrorVerdict(err)
}

// dial opens a new session, unless the last attempt failed too short ago. Its
// error wraps scanner.ErrUnavailable.
func (s *Scanner) dial(ctx context.Context) (*session, error) {
	if err := s.backoff.check(); err != nil {
		return nil, err
	}
	return s.connect(ctx)
}

// connect opens a new session at once.
func (s *Scanner) connect(ctx context.Context) (*session, error) {
	if s.life.Err() != nil {
		return nil, errClosed
	}
	limited, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	defer s.endWith(ctx, cancel)()
	asked := s.know.ask()
	c, gen, err := openSession(limited, s.network, s.addr)
	if err != nil {
		err = unavailable(err)
		if ctx.Err() == nil {
			s.backoff.failed(err)
		}
		return nil, err
	}
	s.backoff.succeeded()
	s.know.learn(asked, gen)
	return c, nil
}
