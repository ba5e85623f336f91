package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/tenant"
)

const (
	// keeperProgram is beside the agent's own.
	keeperProgram = "assay-keeper"
	// keeperPatience is how long a keeper may take to start.
	keeperPatience = 3 * time.Second
	// retryKeeper is the pause between two attempts to find a keeper.
	retryKeeper = time.Second
	// mostBeat bounds the time between two beats.
	mostBeat = time.Second
)

// errNoKeeper says that there is no keeper at the moment.
var errNoKeeper = errors.New("there is no keeper at the moment")

// A backend is what holds the containers: a connection to assay-keeper, or systemd.
type backend interface {
	Hello(limit int) (keeper.Absence, []keeper.Entry, error)
	Keep(e *keeper.Entry) error
	Forget(key string) error
	Lease(key string, fd int) (uint64, error)
	Unlease(serial uint64)
	Beat() error
	PID() int
	Kill() error
	Close()
}

// A link is the agent's connection to its keeper. It finds another keeper when that
// one is lost. It is the [guard.Keeper].
type link struct {
	cfg    tenant.Keeper
	log    *slog.Logger
	limit  int // bounds our descriptors' numbers
	roster *roster

	mu      sync.Mutex // held for a moment only: the status must not wait for a keeper that is stuck
	backend backend    // nil while there is none
	trouble string     // why not
	since   time.Time
	lost    uint64            // keepers lost so far
	ending  bool              // one that was lost is being killed
	kept    map[string]bool   // keys that the keeper holds
	refused map[string]string // keys that it does not, and why
}

func newLink(cfg *tenant.Config, limit int, log *slog.Logger) *link {
	return &link{
		cfg: cfg.Keeper, log: log, limit: limit,
		roster: &roster{dir: filepath.Join(filepath.Dir(cfg.Socket), "guarded"), log: log},
	}
}

// connect finds a keeper, or starts one, and returns what it has kept.
func (l *link) connect(ctx context.Context) (keeper.Absence, []keeper.Entry, error) {
	if l.cfg.Backend == tenant.KeeperOff {
		return keeper.Absence{}, nil, errNoKeeper
	}
	b, a, entries, err := l.meet(ctx)
	if err != nil {
		l.fail(err)
		return keeper.Absence{}, nil, err
	}
	if a.Limit == 0 {
		a.Limit = l.limit
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.backend, l.trouble, l.since = b, "", time.Now()
	l.kept, l.refused = make(map[string]bool), make(map[string]string)
	l.log.Info("in the keeper's hands", "backend", l.cfg.Backend, "pid", b.PID(), "entries", len(entries))
	return a, entries, nil
}

// meet finds a keeper, or starts one, and becomes its agent. It may not have heard of
// the end of the last one yet, whom we know to be gone; or it may be about to end, for
// having nothing to keep.
func (l *link) meet(ctx context.Context) (b backend, a keeper.Absence, entries []keeper.Entry, err error) {
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	for {
		if b, err = l.open(ctx); err != nil {
			return nil, a, nil, err
		}
		if a, entries, err = b.Hello(l.limit); err == nil {
			return b, a, entries, nil
		}
		b.Close()
		if !pause(ctx, 10*time.Millisecond) {
			return nil, a, nil, err
		}
	}
}

func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.trouble != err.Error() {
		l.log.Error("no keeper: if the agent ends, containers are unguarded", "error", err,
			"remedy", "see the keeper's log; systemctl status assay-keeper")
	}
	l.trouble = err.Error()
}

// open finds a keeper, or starts one.
func (l *link) open(ctx context.Context) (backend, error) {
	if l.cfg.Backend == tenant.KeeperSystemd {
		return keeper.OpenSystemd(l.log)
	}
	c, err := keeper.Dial(ctx, l.cfg.Socket)
	if err == nil || !isAbsent(err) {
		return client(c, err)
	}
	if err := l.start(); err != nil {
		return nil, err
	}
	for isAbsent(err) && pause(ctx, 2*time.Millisecond) {
		c, err = keeper.Dial(ctx, l.cfg.Socket)
	}
	return client(c, err)
}

// client keeps a nil pointer out of the interface.
func client(c *keeper.Client, err error) (backend, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// pause waits, and reports whether ctx has not ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func isAbsent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// start starts a keeper that outlives us, and ends when it has nothing to keep.
func (l *link) start() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(self), keeperProgram), "--socket", l.cfg.Socket, "--until-idle")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal of a terminal is for it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	l.log.Info("started a keeper", "pid", cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // how it ended is in its own log
	return nil
}

// run keeps up the connection until ctx is done. healthy says whether events are
// being answered: only then the keeper is told so. renew gives a new keeper everything.
func (l *link) run(ctx context.Context, every time.Duration, healthy func() bool, renew func()) {
	if l.cfg.Backend == tenant.KeeperOff {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var tried time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch b := l.current(); {
		case b != nil && healthy():
			if err := b.Beat(); err != nil {
				l.lose(b, err)
			}
		case b == nil && !l.isEnding() && time.Since(tried) >= retryKeeper:
			tried = time.Now()
			l.reconnect(ctx, renew)
		}
	}
}

// reconnect finds another keeper.
func (l *link) reconnect(ctx context.Context, renew func()) {
	_, entries, err := l.connect(ctx)
	if err != nil {
		return
	}
	// Ours are at least as good: the keeper has them from us.
	for i := range entries {
		entries[i].Close()
	}
	renew()
	l.forgetOthers(entries)
}

// forgetOthers drops what the keeper held for an agent before us and we know nothing of:
// nobody would read those groups.
func (l *link) forgetOthers(entries []keeper.Entry) {
	for i := range entries {
		if key := entries[i].Key; !l.knows(key) {
			l.log.Warn("the keeper held what is not guarded any more", "key", key)
			if err := l.Forget(key); err != nil {
				return // lost again
			}
		}
	}
}

// lose gives up a keeper that has ended, or that does not answer. One that is stuck
// could wake up, believe us gone and answer in our place: so it is killed.
func (l *link) lose(b backend, why error) {
	if !l.giveUp(b, why) {
		return
	}
	l.log.Error("the keeper is lost: if the agent ended now, containers would be unguarded", "pid", b.PID(), "error", why)
	if err := b.Kill(); err != nil {
		l.log.Error("the keeper does not end", "error", err)
	}
	b.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = false
}

// giveUp reports whether the keeper was ours until now.
func (l *link) giveUp(b backend, why error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.backend != b {
		return false
	}
	l.backend, l.trouble, l.ending = nil, why.Error(), true
	l.kept, l.refused = nil, nil
	l.lost++
	return true
}

// isEnding reports whether a keeper that was lost is still being killed.
func (l *link) isEnding() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ending
}

// current is the keeper at the moment, or nil.
func (l *link) current() backend {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.backend
}

// connected reports whether there is a keeper.
func (l *link) connected() bool { return l.current() != nil }

// Keep implements [guard.Keeper].
func (l *link) Keep(e *keeper.Entry) error {
	l.roster.put(e)
	return l.with(func(b backend) error {
		err := b.Keep(e)
		l.note(b, e.Key, err)
		return err
	})
}

// Forget implements [guard.Keeper].
func (l *link) Forget(key string) error {
	l.roster.drop(key)
	l.unnote(key)
	return l.with(func(b backend) error { return b.Forget(key) })
}

// Lease implements [guard.Keeper].
func (l *link) Lease(key string, fd int) (serial uint64, err error) {
	err = l.with(func(b backend) error {
		serial, err = b.Lease(key, fd)
		return err
	})
	return serial, err
}

// Unlease implements [guard.Keeper].
func (l *link) Unlease(serial uint64) {
	if b := l.current(); b != nil {
		b.Unlease(serial)
	}
}

// with calls f with the keeper. An error that is not a refusal costs the keeper.
func (l *link) with(f func(backend) error) error {
	b := l.current()
	if b == nil {
		return errNoKeeper
	}
	err := f(b)
	if err != nil && !errors.Is(err, keeper.ErrRefused) {
		l.lose(b, err)
	}
	return err
}

// close ends the connection: the keeper takes over.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.backend != nil {
		l.backend.Close()
		l.backend = nil
	}
}

// beatEvery is how often a keeper hears of us: several times in the shortest grace.
func beatEvery(cfg *tenant.Config) time.Duration {
	every := mostBeat
	for i := range cfg.Tenants {
		every = min(every, cfg.Tenants[i].Grace/5)
	}
	return every
}
