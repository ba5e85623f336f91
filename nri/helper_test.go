package nri

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"go.uber.org/goleak"

	"github.com/assay-project/assay/internal/announce"
)

func TestMain(m *testing.M) {
	nrilog.Set(&logger{slog.New(slog.DiscardHandler)}) // the runtime's side
	goleak.VerifyTestMain(m)
}

// A testAgent does what a test says, and remembers what it was told.
type testAgent struct {
	policy   func(announce.Container) Policy
	announce func(context.Context, announce.Container) (announce.Guarded, error)
	release  func(id string) bool

	mu        sync.Mutex
	unguarded []string // why
	announced []announce.Container
	released  []string
}

func (a *testAgent) Announce(ctx context.Context, c announce.Container) (announce.Guarded, error) {
	a.mu.Lock()
	a.announced = append(a.announced, c)
	a.mu.Unlock()
	if a.announce == nil {
		return announce.Guarded{ID: c.ID, Marks: 1}, nil
	}
	return a.announce(ctx, c)
}

// Policy is closed unless a test says else.
func (a *testAgent) Policy(c announce.Container) Policy {
	if a.policy == nil {
		return Policy{Tenant: "web", Closed: true}
	}
	return a.policy(c)
}

func (a *testAgent) Unguarded(_ announce.Container, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unguarded = append(a.unguarded, why.Error())
}

// saidUnguarded returns and forgets why containers could not be announced.
func (a *testAgent) saidUnguarded() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	said := a.unguarded
	a.unguarded = nil
	return said
}

func (a *testAgent) Release(id, _ string) bool {
	a.mu.Lock()
	a.released = append(a.released, id)
	a.mu.Unlock()
	return a.release == nil || a.release(id)
}

func (a *testAgent) toldOf() []announce.Container {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]announce.Container(nil), a.announced...)
}

func (a *testAgent) releasedOnes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.released...)
}

// always is a policy for every container.
func always(p Policy) func(announce.Container) Policy {
	return func(announce.Container) Policy { return p }
}

// A logBook is a log that a test can read.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) count(what string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Count(b.text.Bytes(), []byte(what))
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, nil))
}

// newPlugin returns a plugin that waits for little.
func newPlugin(t *testing.T, agent Agent, socket string) (*Plugin, *logBook) {
	t.Helper()
	book := &logBook{}
	p := New(Options{Agent: agent, Socket: socket, Hook: []string{"/usr/bin/env", "/opt/assay/assay-hook"}, Logger: book.logger()})
	p.firstPause, p.longestPause = time.Millisecond, 10*time.Millisecond
	p.late.pause = time.Millisecond
	return p, book
}

// run lets a plugin run until the test ends.
func run(t *testing.T, p *Plugin) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// await waits for a condition, as long as the test may run.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for range 30_000 {
		if ok() {
			return
		}
		<-ticker.C
	}
	stacks := make([]byte, 1<<20)
	t.Fatalf("never came: %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
}

// A testRuntime is the runtime's side of NRI, the real one, behind a relay that can cut
// its plugins' connections.
type testRuntime struct {
	*adaptation.Adaptation
	relay *relay

	mu         sync.Mutex
	pods       []*api.PodSandbox
	containers []*api.Container
	synced     int // plugins
}

// holds is what the runtime tells a plugin that connects.
func (r *testRuntime) holds(pods []*api.PodSandbox, containers []*api.Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods, r.containers = pods, containers
}

func (r *testRuntime) plugins() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced
}

func (r *testRuntime) sync(ctx context.Context, tell adaptation.SyncCB) error {
	r.mu.Lock()
	pods, containers := r.pods, r.containers
	r.mu.Unlock()
	_, err := tell(ctx, pods, containers)
	if err == nil {
		r.mu.Lock()
		r.synced++
		r.mu.Unlock()
	}
	return err
}

func noUpdates(context.Context, []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	return nil, nil
}

// startRuntime starts a runtime behind the plugin's socket, in dir.
func startRuntime(t *testing.T, dir string, options ...adaptation.Option) *testRuntime {
	t.Helper()
	r := &testRuntime{}
	socket := filepath.Join(dir, "runtime.sock")
	options = append([]adaptation.Option{
		adaptation.WithSocketPath(socket),
		adaptation.WithPluginPath(filepath.Join(dir, "plugins")), adaptation.WithPluginConfigPath(filepath.Join(dir, "conf.d")),
	}, options...)
	var err error
	if r.Adaptation, err = adaptation.New("containerd", "v2.2.9", r.sync, noUpdates, options...); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil { // which synchronises those that it has started: none
		t.Fatal(err)
	}
	r.synced = 0
	r.relay = startRelay(t, socketIn(dir), socket)
	t.Cleanup(r.end)
	return r
}

func socketIn(dir string) string { return filepath.Join(dir, "nri.sock") }

// end ends the runtime with its connections.
func (r *testRuntime) end() {
	r.relay.end()
	r.Stop()
}

// isConnected waits until the runtime sends its events to a plugin.
func (r *testRuntime) isConnected(t *testing.T, p *Plugin) {
	t.Helper()
	await(t, "a synchronised connection", func() bool { return r.plugins() > 0 && p.Status().Connected })
	// The runtime counts a plugin in a moment after it was synchronised.
	r.BlockPluginSync().Unblock()
}

// patient lets the runtime wait for d, in this test.
func patient(t *testing.T, d time.Duration) {
	t.Helper()
	adaptation.SetPluginRequestTimeout(d)
	t.Cleanup(func() { adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout) })
}

// A relay connects whoever comes to its socket with another.
type relay struct {
	listener net.Listener
	work     sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	over  bool
}

func startRelay(t *testing.T, from, to string) *relay {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l}
	r.work.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", to)
			if err != nil || !r.admit(near, far) {
				_ = near.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				r.work.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_, _ = near.Close(), far.Close()
				})
			}
		}
	})
	return r
}

func (r *relay) admit(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		for _, c := range conns {
			_ = c.Close()
		}
		return false
	}
	r.conns = append(r.conns, conns...)
	return true
}

// cut ends every connection.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func (r *relay) end() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	_ = r.listener.Close()
	r.cut()
	r.work.Wait()
}

// The messages of one container in one pod.
var (
	aPod = &api.PodSandbox{ //nolint:gochecknoglobals // constant in all but name
		Id: "pod-1", Name: "shop", Uid: "uid-1", Namespace: "pay-eu", Labels: map[string]string{"tier": "pci"},
	}
	aContainer = &api.Container{ //nolint:gochecknoglobals // constant in all but name
		Id: "c-1", PodSandboxId: "pod-1", Name: "cart", Pid: 4711,
		Labels: map[string]string{"tier": "forged"}, Annotations: map[string]string{"namespace": "forged"},
		Image: &api.Image{Name: "shop/cart:1", Digest: "sha256:1"},
	}
)

// created is the container's message before there is a process.
func created() *api.Container {
	c := cloneContainer(aContainer)
	c.Pid = 0
	return c
}
