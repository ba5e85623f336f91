package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
)

// Errors that end a session.
var (
	errHungUp    = errors.New("the runtime closed the connection")
	errEnded     = errors.New("the plugin has ended this connection")
	errImpatient = errors.New("the runtime did not finish the registration")
	errTwice     = errors.New("the plugin is configured already")
)

// A session is the plugin on one connection. Its handlers, in events.go, are what the
// stub calls.
type session struct {
	plugin *Plugin
	agent  context.Context // the agent's life: what is begun in the background ends with it
	life   context.Context // the connection's
	mode   Mode
	stub   stub.Stub

	registered chan struct{} // closed when the runtime has taken us, and has yet to configure us

	bound atomic.Int64 // of a handler, a time.Duration; set when the runtime configures us

	configuring sync.Mutex // held while the stub is configured
	configured  bool       // by the runtime or by us
	gaveUp      bool       // it is us
}

// run is the session on conn, which it closes. It returns how long the session was in
// use and why it ended.
func (s *session) run(conn net.Conn) (time.Duration, error) {
	t := &trunk{Conn: conn, lost: make(chan struct{})}
	defer func() { _ = t.Close() }()
	var err error
	s.stub, err = stub.New(s,
		stub.WithLogger(&logger{s.plugin.log}), // first: the others log
		stub.WithPluginName(s.plugin.opts.Name),
		stub.WithPluginIdx(s.plugin.opts.Index),
		stub.WithConnection(t),
		// Not FailRequest: ARCHITECTURE.md, Decisions.
		stub.WithFailurePolicy(&api.FailurePolicy{KeepConnected: true}),
		stub.WithTTRPCOptions(
			[]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(s.observe)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(s.intercept)},
		),
	)
	if err != nil {
		return 0, fmt.Errorf("the plugin cannot be made: %w", err)
	}
	if err := s.start(t); err != nil {
		return 0, err
	}
	began := time.Now()
	s.plugin.connected(s.mode)
	select {
	case <-t.lost:
		err = errHungUp
	case <-s.life.Done():
		err = errEnded
	}
	s.stub.Stop()
	return time.Since(began), err
}

// start registers the plugin. The stub waits for the runtime to configure it, without a
// bound and with its lock held, and not even the end of the connection ends this wait.
// So if the runtime does not do it, we do.
func (s *session) start(t *trunk) error {
	started := make(chan error, 1)
	go func() { started <- s.stub.Start(s.plugin.withLog(s.life)) }()
	timer := time.NewTimer(s.plugin.patience)
	defer timer.Stop()
	var why error
	select {
	case err := <-started:
		return err
	case <-timer.C:
		why = errImpatient
	case <-t.lost:
		why = errHungUp
	case <-s.life.Done():
		why = errEnded
	}
	_ = t.Close() // ends a registration under way
	select {
	case <-started: //nolint:errcheck // why says more
	case <-s.registered:
		s.giveUp()
		<-started //nolint:errcheck // why says more
	}
	s.stub.Stop() // if it was faster
	return why
}

// observe is around our own requests. After the one that registers us the stub waits to
// be configured.
func (s *session) observe(ctx context.Context, request *ttrpc.Request, reply *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, request, reply)
	if err == nil && reply.GetStatus().GetCode() == 0 && request.GetMethod() == registerMethod {
		close(s.registered) // it is sent once
	}
	return err
}

// giveUp answers the stub's wait for its configuration, if the runtime has not.
func (s *session) giveUp() {
	s.configuring.Lock()
	defer s.configuring.Unlock()
	if s.configured {
		return
	}
	s.configured, s.gaveUp = true, true
	if service, ok := s.stub.(api.PluginService); ok {
		_, _ = service.Configure(s.life, &api.ConfigureRequest{}) // fails, by s.gaveUp
	}
}

// intercept is around every request of the runtime: no panic gets out of a handler, and
// no handler outlasts Run.
func (s *session) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (reply any, err error) {
	if !s.plugin.enter() {
		return nil, errEnded
	}
	defer s.plugin.handlers.Done()
	defer s.plugin.recovered(info.FullMethod, &err)
	if info.FullMethod == configureMethod {
		return s.configureOnce(ctx, unmarshal, method)
	}
	return method(ctx, unmarshal)
}

// configureOnce lets one request configure the stub: it would not return from a third,
// because nobody takes what it has to say.
func (s *session) configureOnce(ctx context.Context, unmarshal ttrpc.Unmarshaler, method ttrpc.Method) (any, error) {
	s.configuring.Lock()
	defer s.configuring.Unlock()
	if s.configured {
		return nil, errTwice
	}
	return method(ctx, func(request any) error {
		err := unmarshal(request)
		s.configured = err == nil // else the stub hears nothing of it
		return err
	})
}

// The names of the requests that register a plugin, and that configure it.
const (
	registerMethod  = "RegisterPlugin"
	configureMethod = "/nri.pkg.api.v1alpha1.Plugin/Configure"
)

// recovered turns a panic under it into an error. It is to be deferred.
func (p *Plugin) recovered(what string, err *error) {
	if v := recover(); v != nil {
		p.counters.panics.Add(1)
		p.log.Error("panic in the plugin (NRI)", "in", what, "panic", v)
		*err = fmt.Errorf("panic in %s: %v (report this as a defect of the agent)", what, v)
	}
}

// A trunk is a connection that says when it is lost.
type trunk struct {
	net.Conn
	once sync.Once
	lost chan struct{}
}

func (t *trunk) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if err != nil {
		t.once.Do(func() { close(t.lost) })
	}
	return n, err
}
