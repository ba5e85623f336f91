package nri

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/assay-project/assay/internal/announce"
)

// How containers that run already are announced.
const (
	lateWorkers = 4                // at a time
	lateTries   = 5                // of each container, before it is given up
	latePause   = time.Second      // before the second try; twice as long before each further one
	lateBound   = 30 * time.Second // of one announcement
)

// lateness announces the containers that ran when we connected: one round at a time,
// each the list of one Synchronize.
type lateness struct {
	tries        int
	pause, bound time.Duration

	mu    sync.Mutex
	round *round
}

// begin announces containers in place of those that are being announced. It does not
// wait; ctx bounds it.
func (l *lateness) begin(ctx context.Context, p *Plugin, containers []announce.Container) {
	ctx, cancel := context.WithCancel(ctx)
	r := &round{
		plugin: p, cancel: cancel, done: make(chan struct{}),
		tries: l.tries, pause: l.pause, bound: l.bound,
		pending: make(map[string]bool, len(containers)),
	}
	for _, c := range containers {
		r.pending[c.ID] = true
	}
	r.total = len(r.pending)
	l.mu.Lock()
	before := l.round
	l.round = r
	l.mu.Unlock()
	if before != nil {
		before.cancel()
	}
	go func() {
		defer close(r.done)
		defer cancel()
		if before != nil {
			<-before.done // two announcements of one container get in each other's way
		}
		r.run(ctx, containers)
	}()
}

// gone hears that a container has ended.
func (l *lateness) gone(id string) {
	if r := l.current(); r != nil {
		r.gone(id)
	}
}

// stop ends what is under way and waits for it.
func (l *lateness) stop() {
	if r := l.current(); r != nil {
		r.cancel()
		<-r.done
	}
}

func (l *lateness) progress() Progress {
	if r := l.current(); r != nil {
		return r.progress()
	}
	return Progress{}
}

func (l *lateness) current() *round {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.round
}

// A round announces the containers of one list, all of them once before any a second
// time.
type round struct {
	plugin       *Plugin
	cancel       context.CancelFunc
	done         chan struct{}
	tries        int
	pause, bound time.Duration

	mu                            sync.Mutex
	pending                       map[string]bool // neither guarded nor ended, by id
	total, guarded, ended, failed int
	lastError                     string
}

// run announces containers until none is left, or ctx ends.
func (r *round) run(ctx context.Context, containers []announce.Container) {
	pause := r.pause
	for try := range r.tries {
		if try > 0 {
			wait(ctx, pause)
			pause *= 2
		}
		if containers = r.pass(ctx, containers); len(containers) == 0 || ctx.Err() != nil {
			return
		}
	}
	r.giveUp()
}

// pass announces each container once and returns those that are to be tried again.
func (r *round) pass(ctx context.Context, containers []announce.Container) []announce.Container {
	next := make(chan announce.Container)
	var workers sync.WaitGroup
	for range min(lateWorkers, len(containers)) {
		workers.Go(func() {
			for c := range next {
				r.try(ctx, c)
			}
		})
	}
	for _, c := range containers {
		next <- c
	}
	close(next)
	workers.Wait()
	return slices.DeleteFunc(containers, func(c announce.Container) bool { return !r.isPending(c.ID) })
}

// try announces a container, unless it is guarded already, or has ended.
func (r *round) try(ctx context.Context, c announce.Container) {
	if ctx.Err() != nil || !r.isPending(c.ID) {
		return
	}
	err := c.Validate()
	if err == nil {
		err = r.announce(ctx, c)
	}
	switch {
	case err == nil:
		r.settle(c.ID, &r.guarded)
	case ctx.Err() == nil && r.isPending(c.ID):
		r.fail(c, err)
	}
}

func (r *round) announce(ctx context.Context, c announce.Container) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.bound, errLate)
	defer cancel()
	_, err := r.plugin.ask(ctx, c)
	return err
}

// errLate says that a container could not be guarded while it runs.
var errLate = errors.New("the agent did not guard it in time")

func (r *round) isPending(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending[id]
}

// settle counts a container for which nothing is left to do. A container counts once.
func (r *round) settle(id string, counter *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[id] {
		delete(r.pending, id)
		*counter++
	}
}

// gone hears that a container has ended.
func (r *round) gone(id string) { r.settle(id, &r.ended) }

// fail notes why a container could not be guarded this time.
func (r *round) fail(c announce.Container, err error) {
	r.mu.Lock()
	r.lastError = "container " + c.ID + ": " + err.Error()
	r.mu.Unlock()
	r.plugin.log.Warn("a container that runs could not be guarded (NRI)", "container", c.ID, "error", err)
}

// giveUp counts what is left as failed.
func (r *round) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = len(r.pending)
	clear(r.pending)
	r.plugin.log.Error("containers run unguarded (NRI)", "containers", r.failed, "last", r.lastError,
		"remedy", "start them again, or restart the agent to try again")
}

func (r *round) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Progress{
		Containers: r.total, Guarded: r.guarded, UnderWay: len(r.pending),
		Gone: r.ended, Failed: r.failed, LastError: r.lastError,
	}
}
