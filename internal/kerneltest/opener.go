package kerneltest

import (
	"errors"
	"os"
	"testing"
	"time"
)

const (
	// patience bounds every wait for something that must come.
	patience = 20 * time.Second
	// impatience is how long something that must not come is waited for, besides
	// whatever proves that it has not.
	impatience = 20 * time.Millisecond
)

// Await waits until something is so.
func Await(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	over := time.After(patience)
	for !is() {
		select {
		case <-over:
			tb.Fatalf("still not: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// An Opener opens and reads a file in the background.
type Opener struct{ result chan opened }

type opened struct {
	content string
	err     error
	at      time.Time
}

// Begin starts an opener.
func Begin(path string) *Opener {
	o := &Opener{make(chan opened, 1)}
	go func() {
		got, err := os.ReadFile(path)
		o.result <- opened{string(got), err, time.Now()}
	}()
	return o
}

// WantWaits wants that the opener has no answer. That its event was raised has to be
// known from elsewhere.
func (o *Opener) WantWaits(tb testing.TB) {
	tb.Helper()
	select {
	case r := <-o.result:
		tb.Fatalf("the opener has its answer: %q, %v", r.content, r.err)
	case <-time.After(impatience):
	}
}

// WantContent wants that the opener reads content, and returns when it had.
func (o *Opener) WantContent(tb testing.TB, content string) time.Time {
	tb.Helper()
	r := o.await(tb)
	if r.err != nil || r.content != content {
		tb.Errorf("the opener got %q, %v, want %q", r.content, r.err, content)
	}
	return r.at
}

// WantError wants that the opener fails, and returns when it had.
func (o *Opener) WantError(tb testing.TB, want error) time.Time {
	tb.Helper()
	r := o.await(tb)
	if !errors.Is(r.err, want) {
		tb.Errorf("the opener got %q, %v, want %v", r.content, r.err, want)
	}
	return r.at
}

func (o *Opener) await(tb testing.TB) opened {
	tb.Helper()
	select {
	case r := <-o.result:
		return r
	case <-time.After(patience):
		tb.Fatal("the opener still waits")
		return opened{}
	}
}
