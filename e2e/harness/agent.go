package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// An Agent is a running assayd with a socket, a state directory and a
// configuration of its own.
type Agent struct {
	Socket string // its unix socket

	suite  *Suite
	under  []string // what runs the agent, and has its pid; empty: nothing
	store  *store   // nil without one
	dir    string
	config string // path of its configuration
	binary string // of assayd
	log    string // path of its standard error, of all its processes
	cmd    *exec.Cmd
	notify *net.UnixConn // what the agent tells its service manager
	exited chan struct{} // closed when the process has been waited for
	ended  atomic.Bool   // a test ended it on purpose
	events *follower
}

// readyPatience is how long an agent may take to become ready.
const readyPatience = 20 * time.Second

// StartAgent starts an agent with the configuration text, to which it adds the
// socket and the state directory, and waits until it says that it is ready. The
// agent has to end well when tb does.
func (s *Suite) StartAgent(tb testing.TB, config string) *Agent {
	tb.Helper()
	return s.StartAgentUnder(tb, nil, config)
}

// StartAgentUnder starts an agent by a command whose last arguments are the agent's,
// and which becomes the agent: prlimit, env, a shell that ends with exec "$@".
func (s *Suite) StartAgentUnder(tb testing.TB, under []string, config string) *Agent {
	tb.Helper()
	a := s.NewAgent(tb, config)
	a.under = under
	a.Begin(tb)
	return a
}

// Begin starts an agent for the first time and waits until it says that it is ready. The
// agent has to end well when tb does.
func (a *Agent) Begin(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() { a.finish(tb) })
	a.start(tb)
	a.events = a.follow(tb)
}

// NewAgent returns an agent that has not started, for tests in which something else
// has to know its socket, or to be there, before [Agent.Begin].
func (s *Suite) NewAgent(tb testing.TB, config string) *Agent {
	tb.Helper()
	dir := s.Scratch(tb)
	a := &Agent{
		Socket: filepath.Join(s.memory(tb), "agent.sock"), suite: s, dir: dir, binary: s.Bin("assayd"),
		config: filepath.Join(dir, "assay.yaml"), log: filepath.Join(dir, "assayd.log"),
	}
	a.writeConfig(tb, config)
	return a
}

func (a *Agent) writeConfig(tb testing.TB, config string) {
	tb.Helper()
	text := fmt.Sprintf("socket: %s\nstate: %s\n%s", a.Socket, a.State(), config)
	if err := os.WriteFile(a.config, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Config returns the path of the agent's configuration.
func (a *Agent) Config() string { return a.config }

// State returns the agent's state directory.
func (a *Agent) State() string { return filepath.Join(a.dir, "state") }

// Log returns what the agent has written to its standard error, over all restarts.
func (a *Agent) Log(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(a.log)
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

// Restart starts the agent again after Stop or Kill, with the configuration and the
// state that it had.
func (a *Agent) Restart(tb testing.TB) {
	tb.Helper()
	a.start(tb)
	a.ended.Store(false)
	a.events = a.follow(tb)
}

// Use makes the next start one of another binary.
func (a *Agent) Use(binary string) { a.binary = binary }

// Again is Restart without following the records: for tests that do so often.
func (a *Agent) Again(tb testing.TB) {
	tb.Helper()
	a.start(tb)
	a.ended.Store(false)
}

// start runs the process and waits for READY=1 on a notification socket.
func (a *Agent) start(tb testing.TB) {
	tb.Helper()
	args := append(slices.Clone(a.under), a.binary, "--config", a.config)
	a.cmd = exec.Command(args[0], args[1:]...)
	notify := filepath.Join(a.dir, "notify.sock")
	a.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	if a.store != nil {
		a.store.pass(tb, a.cmd)
	}
	if err := os.Remove(notify); err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		tb.Fatal(err)
	}
	a.hangUp()
	a.notify = conn
	log, err := os.OpenFile(a.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	cmd, exited := a.cmd, make(chan struct{})
	a.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the state is read from ProcessState
	}()
	if err := a.awaitReady(conn); err != nil {
		tb.Fatal(err)
	}
}

func (a *Agent) awaitReady(conn *net.UnixConn) error {
	if err := conn.SetReadDeadline(time.Now().Add(readyPatience)); err != nil {
		return err
	}
	exited := a.exited
	go func() { // an agent that dies will never say anything
		<-exited
		_ = conn.SetReadDeadline(time.Now())
	}()
	for {
		lines, err := a.notice(conn)
		if err != nil {
			return fmt.Errorf("the agent did not become ready: %w", err)
		}
		if slices.Contains(lines, "READY=1") {
			break
		}
	}
	if a.store != nil {
		a.store.follow(conn)
	} else {
		go drain(conn)
	}
	return nil
}

// hangUp closes the socket on which the last process told of itself.
func (a *Agent) hangUp() {
	if a.notify != nil {
		_ = a.notify.Close()
		a.notify = nil
	}
}

// notice receives what the agent tells its service manager.
func (a *Agent) notice(conn *net.UnixConn) ([]string, error) {
	if a.store != nil {
		return a.store.receive(conn)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	return strings.Split(string(buf[:n]), "\n"), err
}

// drain reads what an agent goes on to say, as systemd does, until conn is closed.
func drain(conn *net.UnixConn) {
	for buf := make([]byte, 4096); ; {
		if _, err := conn.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		_ = conn.SetReadDeadline(time.Time{}) // the one for becoming ready may still run out
	}
}

// finish ends the agent with the test: politely, unless the test has done it.
func (a *Agent) finish(tb testing.TB) {
	tb.Helper()
	if !a.ended.Load() {
		a.Stop(tb)
	}
	a.hangUp()
	a.endKeepers(tb)
	if tb.Failed() {
		text, err := os.ReadFile(a.log)
		tb.Logf("log of the agent (%v):\n%s", err, text)
	}
}

// PID returns the agent's process id.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Signal sends a signal to the agent.
func (a *Agent) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("%v to the agent: %v", sig, err)
	}
}

// Stop ends the agent as systemd does, and expects exit code 0.
func (a *Agent) Stop(tb testing.TB) {
	tb.Helper()
	a.ended.Store(true)
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Errorf("stop the agent: %v", err)
	}
	if err := a.wait(); err != nil {
		tb.Errorf("%v after SIGTERM; killed", err)
		// Go's runtime says on SIGQUIT what every goroutine waits for.
		_ = a.cmd.Process.Signal(syscall.SIGQUIT)
		_ = a.wait()
		_ = a.cmd.Process.Kill()
		<-a.exited
		return
	}
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		tb.Errorf("the agent ended with %v, want exit code 0", a.cmd.ProcessState)
	}
}

// Kill ends the agent with SIGKILL.
func (a *Agent) Kill(tb testing.TB) {
	tb.Helper()
	a.ended.Store(true)
	a.Signal(tb, syscall.SIGKILL)
	if err := a.wait(); err != nil {
		tb.Fatal(err)
	}
}

// Stuck stops the agent with SIGSTOP. Its keeper has to end it within the shortest
// grace time of its tenants.
func (a *Agent) Stuck(tb testing.TB) {
	tb.Helper()
	a.ended.Store(true)
	a.Signal(tb, syscall.SIGSTOP)
	if err := a.wait(); err != nil {
		a.Signal(tb, syscall.SIGKILL)
		tb.Fatal(err)
	}
}

// AwaitEnd waits until the agent ends by itself, which a test has made it do, and
// returns its exit code: -1 if a signal ended it.
func (a *Agent) AwaitEnd(tb testing.TB) int {
	tb.Helper()
	a.ended.Store(true)
	if err := a.wait(); err != nil {
		a.ended.Store(false)
		tb.Fatal(err)
	}
	return a.cmd.ProcessState.ExitCode()
}

// Runs reports whether the agent has not ended.
func (a *Agent) Runs() bool {
	select {
	case <-a.exited:
		return false
	default:
		return true
	}
}

func (a *Agent) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	select {
	case <-a.exited:
		return nil
	case <-ctx.Done():
		return errors.New("the agent did not end")
	}
}

// Reload replaces the configuration and sends SIGHUP. It returns when the agent
// has judged it: the status shows another configuration or a reload error.
func (a *Agent) Reload(tb testing.TB, config string) Status {
	tb.Helper()
	before := a.Status(tb)
	a.writeConfig(tb, config)
	a.Signal(tb, syscall.SIGHUP)
	var after Status
	Eventually(tb, "the agent reloads its configuration", func() error {
		after = a.Status(tb)
		if after.ConfigHash == before.ConfigHash && after.ReloadError == before.ReloadError {
			return errors.New("the status shows neither a new configuration nor a reload error")
		}
		return nil
	})
	return after
}

// CLI runs the operator's program against this agent.
func (a *Agent) CLI(tb testing.TB, args ...string) Result {
	tb.Helper()
	return Command(tb, a.suite.Bin("assay"), append([]string{"--socket", a.Socket}, args...)...)
}

// Gate returns the hook for containers of a namespace.
func (a *Agent) Gate(namespace string) *Gate { return &Gate{Socket: a.Socket, Namespace: namespace} }

// Descriptors returns what the agent's descriptors point to.
func (a *Agent) Descriptors(tb testing.TB) []string {
	tb.Helper()
	return Descriptors(tb, a.PID())
}

// Descriptors returns what a process's descriptors point to; nothing if it has ended.
func Descriptors(tb testing.TB, pid int) []string {
	tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		tb.Fatal(err)
	}
	var targets []string
	for _, entry := range entries {
		// A descriptor may be closed between the listing and this.
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}
