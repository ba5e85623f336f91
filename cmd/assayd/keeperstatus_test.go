package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/tenant"
)

// A fakeKeeper holds what it is given, until it fails.
type fakeKeeper struct {
	backend

	fails error
	dying chan struct{} // Kill returns when it is closed
}

func (f *fakeKeeper) Keep(*keeper.Entry) error { return f.fails }
func (f *fakeKeeper) Forget(string) error      { return f.fails }
func (f *fakeKeeper) PID() int                 { return 4711 }
func (f *fakeKeeper) Close()                   {}

func (f *fakeKeeper) Kill() error {
	<-f.dying
	return nil
}

// newTestLink returns a link in the hands of a keeper that cannot be asked.
func newTestLink(t *testing.T, b backend) *link {
	t.Helper()
	dir := t.TempDir()
	l := newLink(&tenant.Config{
		Socket: filepath.Join(dir, "agent.sock"),
		Keeper: tenant.Keeper{Backend: tenant.KeeperSystemd},
	}, 1024, slog.New(slog.DiscardHandler))
	l.backend, l.kept, l.refused = b, make(map[string]bool), make(map[string]string)
	return l
}

// TestKeptStatus: what the status says of a container is what the keeper has said.
func TestKeptStatus(t *testing.T) {
	k := &fakeKeeper{}
	l := newTestLink(t, k)
	keep := func(key string) { _ = l.Keep(&keeper.Entry{Key: key}) }
	keep("a@1")
	k.fails = fmt.Errorf("%w: no more descriptors", keeper.ErrRefused)
	keep("b@1")
	st := l.status(t.Context())
	if !l.holds([]string{"a@1"}) || l.holds([]string{"b@1"}) || l.holds([]string{"a@1", "b@1"}) {
		t.Errorf("kept are %v", l.kept)
	}
	problems := l.keeperProblems(&st)
	if st.PID != 4711 || st.Trouble != "" || len(problems) != 1 || !strings.Contains(problems[0], "does not hold b@1") {
		t.Errorf("status %+v, problems %q", st, problems)
	}
	k.fails = nil
	keep("b@1")
	if problems := l.keeperProblems(&st); len(problems) != 0 || !l.holds([]string{"a@1", "b@1"}) {
		t.Errorf("after the second attempt: %q", problems)
	}
	if err := l.Forget("a@1"); err != nil || l.holds([]string{"a@1"}) {
		t.Errorf("a container that is over is still kept (%v)", err)
	}
}

// TestStatusOfStuckKeeper: while a keeper is being killed, which can take seconds,
// nobody waits for it, and nobody looks for another.
func TestStatusOfStuckKeeper(t *testing.T) {
	k := &fakeKeeper{dying: make(chan struct{})}
	l := newTestLink(t, k)
	_ = l.Keep(&keeper.Entry{Key: "a@1"})
	k.fails = errors.New("it does not answer")
	lost := make(chan error)
	go func() { lost <- l.Keep(&keeper.Entry{Key: "b@1"}) }()
	for l.connected() && t.Context().Err() == nil {
		runtime.Gosched()
	}
	st := l.status(t.Context())
	if st.PID != 0 || st.Lost != 1 || st.Trouble == "" || l.holds([]string{"a@1"}) || !l.isEnding() {
		t.Errorf("status %+v, ending: %v", st, l.isEnding())
	}
	if problems := l.keeperProblems(&st); len(problems) != 1 || !strings.Contains(problems[0], "it does not answer") {
		t.Errorf("problems %q", problems)
	}
	close(k.dying)
	if err := <-lost; err == nil || l.isEnding() {
		t.Errorf("Keep returned %v, ending: %v", err, l.isEnding())
	}
}

// TestTakeOverProblems: containers that ran unguarded are a problem as long as they
// run, those that could not be taken over until they are guarded again.
func TestTakeOverProblems(t *testing.T) {
	if takeOverStatus(&guard.TakeOver{}) != nil || len(takeOverProblems(&guard.TakeOver{}, nil)) != 0 {
		t.Error("a status of a take-over that never was")
	}
	at := time.Now()
	taken := &guard.TakeOver{At: at, Unguarded: []string{"ran", "restarted", "over"}, Failed: []string{"lost", "back"}}
	now := []guard.ContainerState{
		{ID: "ran", Since: at.Add(-time.Hour)},
		{ID: "restarted", Since: at.Add(time.Second)},
		{ID: "back", Since: at.Add(time.Second)},
	}
	problems := takeOverProblems(taken, now)
	all := strings.Join(problems, "\n")
	if len(problems) != 2 || !strings.Contains(all, ": ran (") || !strings.Contains(all, ": lost (") {
		t.Errorf("problems %q", problems)
	}
	if problems := takeOverProblems(taken, slices.Delete(now, 0, 1)); len(problems) != 1 {
		t.Errorf("without the container that ran unguarded: %q", problems)
	}
}
