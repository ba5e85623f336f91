package nri

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"

	"github.com/assay-project/assay/internal/announce"
)

// TestReconnects: after the connection is cut, and after the runtime was replaced, the
// plugin is back and hears what runs.
func TestReconnects(t *testing.T) {
	dir := t.TempDir()
	agent := &testAgent{}
	running := cloneContainer(aContainer)
	running.State = api.ContainerState_CONTAINER_RUNNING
	r := startRuntime(t, dir)
	r.holds([]*api.PodSandbox{aPod}, []*api.Container{running})
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	await(t, "the first round", func() bool { return p.Status().Synchronized.Guarded == 1 })
	r.isConnected(t, p)

	r.relay.cut()
	await(t, "a second connection", func() bool { return p.Status().Connections == 2 && r.plugins() == 2 })
	await(t, "a second round", func() bool { return len(agent.toldOf()) == 2 })
	r.end()
	await(t, "the loss", func() bool { return !p.Status().Connected })

	next := startRuntime(t, dir)
	next.holds([]*api.PodSandbox{aPod}, []*api.Container{running})
	next.isConnected(t, p)
	await(t, "a third round", func() bool { return len(agent.toldOf()) == 3 })
	if err := start(t, next, aContainer); err != nil {
		t.Error(err)
	}
	if len(agent.releasedOnes()) != 0 {
		t.Errorf("a lost connection released %q", agent.releasedOnes())
	}
}

// A surlyRuntime accepts plugins, and does what a test says with their registration.
type surlyRuntime struct {
	listener net.Listener
	work     sync.WaitGroup
	register func(conn net.Conn) error

	mu      sync.Mutex
	closers []io.Closer
	came    int
}

func startSurly(t *testing.T, socket string, register func(net.Conn) error) *surlyRuntime {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r := &surlyRuntime{listener: l, register: register}
	r.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.came++
			r.closers = append(r.closers, conn)
			r.mu.Unlock()
			r.work.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(r.end)
	return r
}

// serve answers a plugin's registration, and never configures it.
func (r *surlyRuntime) serve(conn net.Conn) {
	mux := multiplex.Multiplex(conn)
	defer func() { _ = mux.Close() }()
	l, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		return
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return
	}
	api.RegisterRuntimeService(server, &surlyService{runtime: r, conn: conn})
	r.mu.Lock()
	r.closers = append(r.closers, server)
	r.mu.Unlock()
	_ = server.Serve(context.Background(), l)
}

func (r *surlyRuntime) visits() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.came
}

func (r *surlyRuntime) end() {
	_ = r.listener.Close()
	r.mu.Lock()
	for _, c := range r.closers {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.work.Wait()
}

type surlyService struct {
	runtime *surlyRuntime
	conn    net.Conn
}

func (s *surlyService) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	return &api.Empty{}, s.runtime.register(s.conn)
}

func (*surlyService) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return &api.UpdateContainersResponse{}, nil
}

// TestRegistrationFails: a runtime that does not finish a plugin's registration is tried
// again and again, and nothing of an attempt is left.
func TestRegistrationFails(t *testing.T) {
	for name, register := range map[string]func(net.Conn) error{
		"never configures": func(net.Conn) error { return nil },
		"refuses":          func(net.Conn) error { return errors.New("not you") },
		"hangs up":         func(conn net.Conn) error { return conn.Close() },
		"hangs up after":   hangUpSoon,
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "nri.sock")
			r := startSurly(t, socket, register)
			p, _ := newPlugin(t, &testAgent{}, socket)
			p.patience = 20 * time.Millisecond
			run(t, p)
			await(t, "a fourth attempt", func() bool { return r.visits() >= 4 })
			if s := p.Status(); s.Connected || s.Connections != 0 || s.LastError == "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// hangUpSoon lets the registration succeed and then closes the connection: whether the
// plugin has its reply by then is left to chance.
func hangUpSoon(conn net.Conn) error {
	go func() { _ = conn.Close() }()
	return nil
}

// TestSilentRuntime: one that accepts and says nothing at all.
func TestSilentRuntime(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "nri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p, _ := newPlugin(t, &testAgent{}, l.Addr().String())
	p.patience = 20 * time.Millisecond
	run(t, p)
	for range 3 {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	if s := p.Status(); s.LastError != errImpatient.Error() {
		t.Errorf("last error %q", s.LastError)
	}
}

// TestEndDuringRegistration: the agent's end does not wait for a runtime.
func TestEndDuringRegistration(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nri.sock")
	r := startSurly(t, socket, func(net.Conn) error { return nil })
	p, _ := newPlugin(t, &testAgent{}, socket)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	await(t, "a connection", func() bool { return r.visits() == 1 })
	cancel()
	<-done
}

// TestGarbage: bytes that are no message end the connection and nothing else.
func TestGarbage(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "nri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p, _ := newPlugin(t, &testAgent{}, l.Addr().String())
	run(t, p)
	for _, garbage := range [][]byte{make([]byte, 64), {0, 0, 0, 1, 255, 255, 255, 255}, {0, 0, 0, 1, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 7, 7}} {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(garbage); err != nil {
			t.Log(err) // it may have closed by then
		}
		_ = conn.Close()
	}
	conn, err := l.Accept() // it is back
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if n := p.Status().Panics; n != 0 {
		t.Errorf("%d panics", n)
	}
}

// TestConfiguredOnce: a second configuration is refused, and one that cannot be read
// leaves the way free for another.
func TestConfiguredOnce(t *testing.T) {
	p, _ := newPlugin(t, &testAgent{}, "")
	s := &session{plugin: p, agent: t.Context(), life: t.Context()}
	info := &ttrpc.UnaryServerInfo{FullMethod: configureMethod}
	method := func(_ context.Context, unmarshal func(any) error) (any, error) { return nil, unmarshal(nil) }
	bad := errors.New("unreadable")
	readable := func(any) error { return nil }
	for _, step := range []struct {
		unmarshal func(any) error
		want      error
	}{{func(any) error { return bad }, bad}, {readable, nil}, {readable, errTwice}} {
		if _, err := s.intercept(t.Context(), step.unmarshal, info, method); !errors.Is(err, step.want) {
			t.Errorf("error %v, want %v", err, step.want)
		}
	}
}

// TestMissingSocket: it is said once, as loud as the configuration wants it.
func TestMissingSocket(t *testing.T) {
	for level, expected := range map[string]bool{"INFO": false, "WARN": true} {
		t.Run(level, func(t *testing.T) {
			dir := t.TempDir()
			p, book := newPlugin(t, &testAgent{}, socketIn(dir))
			p.opts.Expected = expected
			run(t, p)
			await(t, "a word", func() bool { return book.count("there is no socket") > 0 })
			r := startRuntime(t, dir)
			r.isConnected(t, p)
			if book.count("level="+level+" msg=\"no connection to a runtime") != 1 || book.count("there is no socket") != 1 {
				t.Errorf("said %d times", book.count("there is no socket"))
			}
		})
	}
}

// TestEnvironment: who we are is not for a runtime's variables to say.
func TestEnvironment(t *testing.T) {
	for name, value := range map[string]string{api.PluginNameEnvVar: "other", api.PluginIdxEnvVar: "77", api.PluginSocketEnvVar: "0"} {
		t.Setenv(name, value)
	}
	r, p := connect(t, &testAgent{})
	if err := start(t, r, aContainer); err != nil || p.Status().Mode != External {
		t.Errorf("error %v, status %+v", err, p.Status())
	}
	if value, there := os.LookupEnv(api.PluginIdxEnvVar); there {
		t.Errorf("%s is %q", api.PluginIdxEnvVar, value)
	}
}

// serve lets a plugin have a connection to a socket that the test makes.
func serve(t *testing.T, p *Plugin, socket string) <-chan error {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over, result := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(over)
		result <- p.Serve(ctx, conn)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		p.late.stop()
	})
	return result
}

// TestServe: a connection that is given takes the place of our own until it ends, and a
// newer one takes its.
func TestServe(t *testing.T) {
	dir, givenDir := t.TempDir(), t.TempDir()
	agent := &testAgent{}
	r, given := startRuntime(t, dir), startRuntime(t, givenDir)
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	r.isConnected(t, p)

	first := serve(t, p, socketIn(givenDir))
	given.isConnected(t, p)
	await(t, "the given one", func() bool { return p.Status().Mode == PreInstalled })
	if err := start(t, given, aContainer); err != nil || len(agent.toldOf()) != 1 {
		t.Errorf("error %v, announced %d", err, len(agent.toldOf()))
	}
	if err := start(t, r, aContainer); err != nil || len(agent.toldOf()) != 1 {
		t.Errorf("over our own connection: error %v, announced %d", err, len(agent.toldOf()))
	}
	second := serve(t, p, socketIn(givenDir))
	if err := <-first; !errors.Is(err, errEnded) {
		t.Errorf("the first ended with %v", err)
	}
	await(t, "the newer one", func() bool { return given.plugins() == 2 && p.Status().Connections == 3 })
	if n := r.plugins(); n != 1 {
		t.Errorf("%d connections of our own while one was given", n)
	}
	given.relay.cut()
	if err := <-second; !errors.Is(err, errHungUp) {
		t.Errorf("the second ended with %v", err)
	}
	await(t, "our own again", func() bool { return r.plugins() == 2 && p.Status().Mode == External && p.Status().Connected })
}

// TestConnectionLostDuringAnnouncement: it goes on, because the container may live.
func TestConnectionLostDuringAnnouncement(t *testing.T) {
	begun, proceed := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	agent := &testAgent{announce: func(ctx context.Context, c announce.Container) (announce.Guarded, error) {
		close(begun)
		<-proceed
		ended <- ctx.Err()
		return announce.Guarded{ID: c.ID}, nil
	}}
	dir := t.TempDir()
	r := startRuntime(t, dir)
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	r.isConnected(t, p)
	result := make(chan error, 1)
	go func() { result <- start(t, r, aContainer) }()
	<-begun
	r.relay.cut()
	<-result //nolint:errcheck // the runtime goes on without us
	await(t, "the loss", func() bool { return p.Status().Connections == 2 || !p.Status().Connected })
	close(proceed)
	if err := <-ended; err != nil {
		t.Errorf("the announcement was given up: %v", err)
	}
}
