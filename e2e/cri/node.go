// Package cri runs the built agent on a node whose containers a real containerd manages
// through its Kubernetes service (CRI), as the kubelet asks for them, with the agent's
// NRI plugin and hook.
//
// It owns a containerd with everything of its own ([Node]), pods and containers in it
// ([Pod], [Container]), the test's own NRI plugins ([Hooks]), a socket in between
// ([Proxy]), and somebody who sees what the kernel has let through ([Observer]). It must
// not own how agents are started and images are made: that is package harness's; nor a
// load of opens, which is package fault's.
//
// ASSAY_CONTAINERD names the directory of the containerd under test, with its shim and
// ctr; make e2e-containerd runs the package once for each version.
package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/assay-project/assay/e2e/harness"
)

// patience is how long a call to containerd may take before it counts as hung.
const patience = 90 * time.Second

// Options is what a test wants of its containerd. The zero value is an ordinary node.
type Options struct {
	Snapshotter    string        // overlayfs
	Required       []string      // NRI plugins without which no container is created
	RequestTimeout time.Duration // for an NRI plugin's answer; containerd's own is 2s
	PassThrough    []string      // pod and container annotations that reach the OCI runtime
}

// A Node is a containerd with root, state, sockets and configuration of its own.
type Node struct {
	Socket    string // containerd's, for its own API and for CRI
	NRISocket string
	Images    Images

	suite   *harness.Suite
	bin     string // containerd's binaries
	dir     string
	config  string // path
	options Options
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has been waited for
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	serial  int // of pods
}

// Start starts a containerd, waits until it takes pods, and imports the images. It ends
// with tb, with every pod.
func Start(tb testing.TB, suite *harness.Suite, o Options) *Node {
	tb.Helper()
	n := Prepare(tb, suite, o)
	n.Begin(tb)
	return n
}

// Prepare returns a node that has not started, for tests in which something else has to
// know its sockets, or to be there, before [Node.Begin].
func Prepare(tb testing.TB, suite *harness.Suite, o Options) *Node {
	tb.Helper()
	dir := suite.Scratch(tb)
	n := &Node{
		Socket: filepath.Join(dir, "containerd.sock"), NRISocket: filepath.Join(dir, "nri.sock"),
		suite: suite, bin: binaries(tb), dir: dir, config: filepath.Join(dir, "config.toml"), options: o,
	}
	if err := os.WriteFile(n.config, []byte(n.configuration()), 0o600); err != nil {
		tb.Fatal(err)
	}
	return n
}

// Begin is Start for a node that was prepared.
func (n *Node) Begin(tb testing.TB) {
	tb.Helper()
	n.dial(tb)
	tb.Cleanup(func() { n.finish(tb) })
	n.start(tb)
	n.importImages(tb)
}

// binaries returns the directory of the containerd under test.
func binaries(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("ASSAY_CONTAINERD")
	if dir == "" {
		tb.Fatal("ASSAY_CONTAINERD does not name the directory of a containerd: use make e2e-containerd, or make containerd and one of bin/containerd/*")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// dial makes the client. It connects, and connects again, by itself.
func (n *Node) dial(tb testing.TB) {
	tb.Helper()
	soon := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}
	conn, err := grpc.NewClient("unix:"+n.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		tb.Fatal(err)
	}
	n.conn, n.runtime, n.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

// start runs the process and waits until it takes pods: its socket answers before that.
func (n *Node) start(tb testing.TB) {
	tb.Helper()
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(filepath.Join(n.bin, "containerd"), "--config", n.config)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	// Where its shim looks for programs, and what tells its processes from others.
	n.cmd.Env = append(os.Environ(), "PATH="+n.bin+":"+os.Getenv("PATH"))
	if err := n.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	cmd, exited := n.cmd, make(chan struct{})
	n.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the state is read from ProcessState
	}()
	harness.Eventually(tb, "containerd takes pods", n.ready)
}

// ready returns nil if containerd's Kubernetes service says that it takes pods.
func (n *Node) ready() error {
	if !n.Runs() {
		return fmt.Errorf("containerd has ended; its log:\n%s", n.logTail())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	status, err := n.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.GetType() == cri.RuntimeReady && !c.GetStatus() {
			return fmt.Errorf("runtime is not ready: %s: %s", c.GetReason(), c.GetMessage())
		}
	}
	return nil
}

// Runs reports whether containerd has not ended.
func (n *Node) Runs() bool {
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// PID returns containerd's process id.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Signal sends a signal to containerd.
func (n *Node) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := n.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("%v to containerd: %v", sig, err)
	}
}

// End ends containerd by a signal. Its containers go on, with their shims.
func (n *Node) End(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	n.Signal(tb, sig)
	if err := n.awaitEnd(); err != nil {
		tb.Fatalf("%v after %v", err, sig)
	}
}

// Restart ends containerd by a signal and starts it again.
func (n *Node) Restart(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	n.End(tb, sig)
	n.start(tb)
}

// Resume starts containerd again after End.
func (n *Node) Resume(tb testing.TB) { tb.Helper(); n.start(tb) }

func (n *Node) awaitEnd() error {
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case <-n.exited:
		return nil
	case <-timer.C:
		return errors.New("containerd did not end")
	}
}

// Log returns what containerd has written, over all restarts.
func (n *Node) Log(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

func (n *Node) logFile() string { return filepath.Join(n.dir, "containerd.log") }

// logTail returns the end of the log, for messages.
func (n *Node) logTail() string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8<<10):])
}

// call returns the context of one call to containerd on behalf of tb.
func call(tb testing.TB) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeout(tb.Context(), patience)
}
