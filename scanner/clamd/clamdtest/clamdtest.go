// Package clamdtest starts real clamd processes for tests.
//
// It owns: the process, its scratch directory and its tiny database. It must not
// own what clamd is asked: that is package clamd's.
package clamdtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// patience is how long clamd may take to start, to stop or to load a database.
	// It only turns a hung test into a failed one.
	patience = 30 * time.Second
	// attempts is how often clamd is started anew because somebody else took its
	// TCP port meanwhile.
	attempts = 3
	// probeTimeout bounds one question to clamd while it starts.
	probeTimeout = 2 * time.Second
)

// Options say what kind of clamd to start. The zero value is one that finds
// [Default] and admits to its limits.
type Options struct {
	// Signatures are found anywhere in a file; none means Default().
	Signatures []Signature
	// Config has further lines of clamd.conf, instead of those of this package.
	Config []string
}

// An Instance is a clamd process with a scratch directory of its own.
type Instance struct {
	dir     string
	config  []string
	port    int
	version int // of the database
	running *process
}

// A process is one run of clamd.
type process struct {
	pid    int
	exited chan struct{} // closed when clamd is gone
	state  string        // how it ended; valid once exited is closed
}

// Start starts clamd and returns when it answers. The process is killed, and its
// files are removed, when the test ends. If clamd is not installed, the test
// fails with the remedy.
func Start(tb testing.TB, opts Options) *Instance {
	tb.Helper()
	dir, err := os.MkdirTemp("", "clamd") //nolint:usetesting // TempDir's name grows with the test's; a socket's path is short.
	if err != nil {
		tb.Fatal(err)
	}
	i := &Instance{dir: dir, config: opts.Config}
	tb.Cleanup(func() {
		i.Kill(tb)
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	if err := os.Mkdir(i.path("db"), 0o755); err != nil {
		tb.Fatal(err)
	}
	if len(opts.Signatures) == 0 {
		opts.Signatures = []Signature{Default()}
	}
	i.writeDatabase(tb, opts.Signatures)
	i.Restart(tb)
	return i
}

// Socket returns the path of clamd's unix socket.
func (i *Instance) Socket() string { return i.path("clamd.ctl") }

// TCP returns clamd's host:port on the loopback.
func (i *Instance) TCP() string { return fmt.Sprintf("127.0.0.1:%d", i.port) }

// PID returns the process id of the clamd that runs, or ran last.
func (i *Instance) PID() int { return i.running.pid }

// Kill ends clamd with SIGKILL and returns when it is gone. It may be called
// again.
func (i *Instance) Kill(tb testing.TB) {
	tb.Helper()
	if i.running == nil {
		return
	}
	select {
	case <-i.running.exited:
		return
	default:
	}
	if err := syscall.Kill(i.running.pid, syscall.SIGKILL); err != nil {
		tb.Errorf("killing clamd: %v", err)
	}
	await(tb, i.running.exited, "clamd does not end")
}

// Restart kills clamd if it runs, starts it on the same socket and port, and
// returns when it answers.
func (i *Instance) Restart(tb testing.TB) {
	tb.Helper()
	i.Kill(tb)
	var err error
	for range attempts {
		if i.port == 0 {
			i.port = freePort(tb)
		}
		if err = i.start(tb); err == nil {
			return
		}
		i.Kill(tb)
		i.port = 0
	}
	tb.Fatalf("clamd does not start: %v\n%s", err, i.Log())
}

// ReplaceDatabase makes clamd find these signatures and no others, under a new
// version of the database, and returns when it does.
func (i *Instance) ReplaceDatabase(tb testing.TB, signatures ...Signature) {
	tb.Helper()
	i.writeDatabase(tb, signatures)
	if got, err := i.command("RELOAD"); err != nil || got != "RELOADING" {
		tb.Fatalf("RELOAD: %q, %v", got, err)
	}
	part := fmt.Sprintf("/%d/", i.version)
	i.eventually(tb, func() error {
		got, err := i.command("VERSION")
		if err == nil && !strings.Contains(got, part) {
			err = fmt.Errorf("clamd is at %q, want %q", got, part)
		}
		return err
	})
}

// Log returns what clamd has written to its log and its standard output.
func (i *Instance) Log() string {
	var all []byte
	for _, name := range []string{"out", "clamd.log"} {
		// A file that is not there yet has nothing to say.
		part, _ := os.ReadFile(i.path(name))
		all = append(all, part...)
	}
	return string(all)
}

func (i *Instance) path(name string) string { return filepath.Join(i.dir, name) }

// start runs clamd and waits until it answers on both of its sockets.
func (i *Instance) start(tb testing.TB) error {
	tb.Helper()
	program, err := find()
	if err != nil {
		tb.Fatal(err)
	}
	i.writeConfig(tb)
	out, err := os.Create(i.path("out"))
	if err != nil {
		tb.Fatal(err)
	}
	defer out.Close()
	if i.running, err = run(program, i.path("clamd.conf"), out); err != nil {
		tb.Fatal(err)
	}
	return i.waitReady(tb)
}

// run starts the program. It is killed if the test's process dies, which the
// kernel takes to be the thread that started it: hence one that waits for it.
func run(program, config string, out *os.File) (*process, error) {
	cmd := exec.Command(program, "--config-file", config) //nolint:noctx // It lives as long as the test.
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // The state below says the same, and more.
			p.state = cmd.ProcessState.String()
			close(p.exited)
		}
	}()
	return p, <-started
}

func (i *Instance) waitReady(tb testing.TB) error {
	tb.Helper()
	var ended error
	i.eventually(tb, func() error {
		select {
		case <-i.running.exited:
			ended = fmt.Errorf("it ended: %s", i.running.state)
			return nil
		default:
		}
		if err := ping("unix", i.Socket()); err != nil {
			return err
		}
		return ping("tcp", i.TCP())
	})
	return ended
}

func ping(network, addr string) error {
	got, err := ask(network, addr, "PING")
	if err == nil && got != "PONG" {
		err = fmt.Errorf("PING at %s: %q", addr, got)
	}
	return err
}

// command sends one command over the unix socket and returns the reply.
func (i *Instance) command(name string) (string, error) { return ask("unix", i.Socket(), name) }

func ask(network, addr, name string) (string, error) {
	conn, err := net.DialTimeout(network, addr, probeTimeout) //nolint:noctx // Bounded by its timeout.
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("z" + name + "\x00")); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(bytes.TrimRight(got, "\x00")), err
}

func (i *Instance) writeConfig(tb testing.TB) {
	tb.Helper()
	lines := slices.Clone(i.config)
	for _, line := range []string{
		"Foreground yes",
		"LocalSocket " + i.Socket(),
		fmt.Sprintf("TCPSocket %d", i.port),
		"TCPAddr 127.0.0.1",
		"DatabaseDirectory " + i.path("db"),
		"TemporaryDirectory " + i.dir,
		"PidFile " + i.path("clamd.pid"),
		"LogFile " + i.path("clamd.log"),
		"MaxThreads 8",
		"SelfCheck 0",
		"AlertExceedsMax yes",
	} {
		option, _, _ := strings.Cut(line, " ")
		if !slices.ContainsFunc(i.config, func(other string) bool { return strings.HasPrefix(other, option+" ") }) {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(i.path("clamd.conf"), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// find returns the path of clamd.
func find() (string, error) {
	path, err := exec.LookPath("clamd")
	if err != nil {
		const usual = "/usr/sbin/clamd" // not in every user's PATH
		path, err = exec.LookPath(usual)
	}
	if err != nil {
		return "", fmt.Errorf("clamd is needed: apt-get install clamav-daemon: %w", err)
	}
	return path, nil
}

// freePort returns a TCP port of the loopback that nobody uses now.
func freePort(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It does not block.
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		tb.Fatalf("a TCP listener with the address %v", l.Addr())
	}
	return addr.Port
}

// eventually waits until ok returns nil.
func (i *Instance) eventually(tb testing.TB, ok func() error) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("clamd: %v\n%s", err, i.Log())
		}
	}
}

func await(tb testing.TB, done <-chan struct{}, what string) {
	tb.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		tb.Fatal(what)
	}
}
