package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/assay-project/assay/internal/announce"
)

// An Agent is whom the plugin tells of containers. Its methods may be called by several
// goroutines. Announce has to return soon after its context ends; a call that does not
// is given up, and may outlast [Plugin.Run].
type Agent interface {
	// Announce guards the container, or says why not.
	Announce(ctx context.Context, c announce.Container) (announce.Guarded, error)
	// Policy says what holds for a container before it exists. It answers from memory.
	Policy(c announce.Container) Policy
	// Unguarded hears why a container could not even be announced, to count and record
	// what becomes of it.
	Unguarded(c announce.Container, why error)
	// Release ends the guard of a container that the runtime has removed. It reports
	// whether there was one.
	Release(id, why string) bool
}

// A Policy is what holds for a container.
type Policy struct {
	Tenant string // whose it is, for messages
	Exempt bool   // the platform has decided that it is not guarded
	Closed bool   // it must not start unguarded
}

// Options say how a plugin connects. Agent and Logger are required.
type Options struct {
	Agent  Agent
	Socket string // the runtime's; default api.DefaultSocketPath
	Name   string // under which the plugin registers; default "assay"
	Index  string // two digits, its order among plugins; default "10"
	// Hook is the program and the arguments of the OCI hook, without the runtime and the
	// stage, that is put into containers which must not run unguarded. Without one they are refused.
	Hook []string
	// HookTimeout is how long the runtime lets the hook run. It has to be longer than
	// the hook's own, which says what it waited for. Default 40 s.
	HookTimeout time.Duration
	// Expected says that there has to be a runtime: a socket that is missing is then
	// warned of.
	Expected bool
	Logger   *slog.Logger
}

// How long things take, in a plugin that no test has changed.
const (
	firstPause   = 250 * time.Millisecond // before the second attempt to connect
	longestPause = 10 * time.Second       // between two attempts; a connection has lasted if it is older
	patience     = 15 * time.Second       // for a runtime's registration, all in all
)

// A Plugin is the plugin, at most one connection at a time. Make one with [New].
type Plugin struct {
	opts Options
	log  *slog.Logger

	firstPause, longestPause, patience time.Duration

	expected *expected
	late     lateness
	counters counters

	turn chan struct{} // holds one token: who has it may have a connection

	mu      sync.Mutex
	given   int                // connections that somebody else made and Serve has or waits for
	end     context.CancelFunc // ends the present connection
	resumed chan struct{}      // closed when given is 0 again; nil while it is
	state   connectionState

	over     bool           // no handler may begin
	handlers sync.WaitGroup // those that run
}

// New returns a plugin. It connects with [Plugin.Run], or when it is given a connection
// ([Plugin.Serve]).
//
// New takes the variables by which a runtime tells a plugin that it starts who it is out
// of the environment: the configuration says who we are, and the stub would believe them.
func New(o Options) *Plugin {
	for _, name := range []string{api.PluginNameEnvVar, api.PluginIdxEnvVar, api.PluginSocketEnvVar} {
		_ = os.Unsetenv(name) // fails only for names that cannot be set
	}
	o.Socket = cmp.Or(o.Socket, api.DefaultSocketPath)
	o.Name = cmp.Or(o.Name, "assay")
	o.Index = cmp.Or(o.Index, "10")
	o.HookTimeout = cmp.Or(o.HookTimeout, 40*time.Second)
	p := &Plugin{
		opts: o, log: o.Logger,
		firstPause: firstPause, longestPause: longestPause, patience: patience,
		expected: newExpected(mostExpected),
		late:     lateness{tries: lateTries, pause: latePause, bound: lateBound},
		turn:     make(chan struct{}, 1),
	}
	p.turn <- struct{}{}
	return p
}

// Known returns what the runtime has said of a container that it has created, without
// its process: what a hook announces of it can be completed from there. Containers are
// known from their creation to their removal, some thousands of them.
func (p *Plugin) Known(id string) (announce.Container, bool) { return p.expected.get(id) }

// Run keeps a connection to the runtime's socket until ctx ends. While [Plugin.Serve]
// has a connection, Run makes none. A plugin runs once.
func (p *Plugin) Run(ctx context.Context) {
	pause := p.firstPause
	for ctx.Err() == nil && p.awaitResumed(ctx) {
		lasted, err := p.dial(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errEnded) {
			continue // for one that was given
		}
		if lasted >= p.longestPause {
			pause = p.firstPause
		}
		p.lost(err) //nolint:contextcheck // logs
		wait(ctx, pause/2+rand.N(pause/2+1))
		pause = min(2*pause, p.longestPause)
	}
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.handlers.Wait()
	p.late.stop()
}

// enter lets a handler begin, unless Run has ended.
func (p *Plugin) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.handlers.Add(1)
	}
	return !p.over
}

// wait returns when d is over, or ctx.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// dial makes one connection and keeps it until it ends. It returns how long it was in
// use and why it ended.
func (p *Plugin) dial(ctx context.Context) (time.Duration, error) {
	d := net.Dialer{Timeout: p.patience}
	conn, err := d.DialContext(ctx, "unix", p.opts.Socket)
	if err != nil {
		return 0, err
	}
	return p.use(ctx, conn, External)
}

// Serve is a plugin on a connection that somebody else made: the runtime starts a
// program that it finds among its pre-installed plugins, which hands its connection on.
// Serve closes it, and returns why it ended, after the runtime has closed it, ctx has
// ended, or Serve was called with a newer one. ctx is the agent's, not a request's: what
// the connection has begun may outlast it.
//
// A connection that is given takes the place of any other, and Run makes none
// until it has ended. There is one runtime: if it starts its plugins, it is new, and an
// older connection is to one that is gone.
func (p *Plugin) Serve(ctx context.Context, conn net.Conn) error {
	p.suspend()
	defer p.resume()
	_, err := p.use(ctx, conn, PreInstalled)
	if ctx.Err() == nil && !errors.Is(err, errEnded) {
		p.lost(err) //nolint:contextcheck // logs
	}
	return err
}

// suspend keeps Run from connecting, and ends the present connection.
func (p *Plugin) suspend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.given++; p.given == 1 {
		p.resumed = make(chan struct{})
	}
	if p.end != nil {
		p.end()
	}
}

func (p *Plugin) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.given--; p.given == 0 {
		close(p.resumed)
		p.resumed = nil
	}
}

// awaitResumed returns when Serve has no connection. It is false if ctx ended before.
func (p *Plugin) awaitResumed(ctx context.Context) bool {
	p.mu.Lock()
	resumed := p.resumed
	p.mu.Unlock()
	if resumed == nil {
		return true
	}
	select {
	case <-resumed:
		return true
	case <-ctx.Done():
		return false
	}
}

// use is the plugin on conn, once no other connection is in use.
func (p *Plugin) use(ctx context.Context, conn net.Conn, mode Mode) (time.Duration, error) {
	defer func() { _ = conn.Close() }() // a second time, as a rule
	select {
	case <-p.turn:
		defer func() { p.turn <- struct{}{} }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	life, end := context.WithCancel(ctx)
	defer end()
	if !p.begin(mode, end) {
		return 0, errEnded
	}
	defer p.ended()
	s := &session{plugin: p, agent: ctx, life: life, mode: mode, registered: make(chan struct{})}
	return s.run(conn) //nolint:contextcheck // the session has it
}

// begin makes end the way to end the present connection. It is false for one of our own
// if there is a given one by now.
func (p *Plugin) begin(mode Mode, end context.CancelFunc) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mode == External && p.given > 0 {
		return false
	}
	p.end = end
	return true
}

func (p *Plugin) ended() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end = nil
	if p.state.connected {
		p.state.connected, p.state.since = false, time.Now()
	}
}

// lost notes why there is no connection, and says it once.
func (p *Plugin) lost(err error) {
	said, level := fmt.Sprint(err), slog.LevelWarn
	if errors.Is(err, fs.ErrNotExist) {
		said = fmt.Sprintf("there is no socket %s (enable NRI in the runtime, or name its socket in nri.socket)", p.opts.Socket)
		if !p.opts.Expected {
			level = slog.LevelInfo
		}
	}
	p.mu.Lock()
	again := p.state.lastError == said
	p.state.lastError = said
	p.mu.Unlock()
	if !again {
		p.log.Log(context.Background(), level, "no connection to a runtime (NRI)", "error", said)
	}
}
