package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
)

// childVariable makes a test binary an agent, or a keeper, that does what it is told
// line by line: some have to die.
const childVariable = "ASSAY_TEST_CHILD"

// beatEvery is how often an agent beats that was told to.
const beatEvery = 50 * time.Millisecond

// A child is such a process, seen from the test.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startChild(t *testing.T, options ...func(*exec.Cmd)) *child {
	t.Helper()
	c := &child{cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(os.Environ(), childVariable+"=1")
	c.cmd.Stderr = os.Stderr
	for _, set := range options {
		set(c.cmd)
	}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// startAgent starts a child that is the agent of the keeper at socket.
func startAgent(t *testing.T, socket string) (*child, greeting) {
	t.Helper()
	c := startChild(t)
	return c, c.hello(t, "hello", socket)
}

// hello makes the child an agent, by socket or systemd's environment.
func (c *child) hello(t *testing.T, words ...string) greeting {
	t.Helper()
	var g greeting
	if err := json.Unmarshal([]byte(c.do(t, words...)), &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// do tells the child to do something and returns what it says.
func (c *child) do(t *testing.T, words ...string) string {
	t.Helper()
	reply, err := c.try(words...)
	if err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	return reply
}

func (c *child) try(words ...string) (string, error) {
	c.tell(words...)
	if !c.out.Scan() {
		return "", fmt.Errorf("the child has ended: %w", errors.Join(io.EOF, c.out.Err()))
	}
	status, reply, _ := strings.Cut(c.out.Text(), " ")
	if status != "ok" {
		return "", errors.New(reply)
	}
	return reply, nil
}

// tell is do for what has no reply.
func (c *child) tell(words ...string) {
	_, _ = fmt.Fprintln(c.in, strings.Join(words, "\t")) // one that has ended gives no reply
}

// kill kills the child and waits for it. Killing twice is harmless.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// wantKilled wants that somebody else kills the child.
func (c *child) wantKilled(t *testing.T) {
	t.Helper()
	err := c.cmd.Wait()
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != unix.SIGKILL {
		t.Errorf("the child ended with %v, want SIGKILL", err)
	}
}

// A greeting is what a child says of the reply to its hello.
type greeting struct {
	Absence Absence
	Entries []Entry
}

// A worker is the child itself.
type worker struct {
	keeper clientOrSystemd
	groups map[string]*fanotify.Group
	events chan *fanotify.Permission
	files  map[string]int
}

type clientOrSystemd interface {
	Hello(limit int) (Absence, []Entry, error)
	Keep(e *Entry) error
	Forget(key string) error
	Lease(key string, fd int) (uint64, error)
	Beat() error
	Close()
}

func serveAsChild(in io.Reader, out io.Writer) error {
	w := &worker{groups: map[string]*fanotify.Group{}, files: map[string]int{}, events: make(chan *fanotify.Permission, 100)}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		words := strings.Split(lines.Text(), "\t")
		reply, err := w.do(words[0], words[1:])
		status := "ok"
		if err != nil {
			status, reply = "error", strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if _, err := fmt.Fprintln(out, status, reply); err != nil {
			return err
		}
	}
	return nil
}

// do does one thing.
func (w *worker) do(what string, words []string) (string, error) {
	switch what {
	case "hello": // SOCKET
		c, err := Dial(context.Background(), words[0])
		if err != nil {
			return "", err
		}
		w.keeper = c
		return w.hello()
	case "systemd":
		s, err := OpenSystemd(slog.New(slog.DiscardHandler))
		if err != nil {
			return "", err
		}
		w.keeper = s
		return w.hello()
	case "beat":
		go func() {
			for w.keeper.Beat() == nil {
				<-time.After(beatEvery)
			}
		}()
		return "", nil
	case "hangup":
		w.keeper.Close()
		return "", nil
	case "stop":
		return "", unix.Kill(unix.Getpid(), unix.SIGSTOP)
	case "open": // FILE
		fd, err := unix.Open(words[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		w.files[words[0]] = fd
		return "", err
	case "guard": // KEY GRACE FALLBACK DIRECTORY
		return "", w.guard(words[0], words[1], words[2], words[3])
	case "forget": // KEY
		return "", w.keeper.Forget(words[0])
	case "read": // KEY: take its events without an answer
		return "", w.serve(words[0], func(ev *fanotify.Event) { w.events <- ev.Take() })
	case "answer": // KEY: allow its events
		return "", w.serve(words[0], func(ev *fanotify.Event) { ev.Answer(fanotify.Allow) })
	case "settle": // KEY FALLBACK
		d, err := fallbackNamed(words[1])
		if err == nil && w.groups[words[0]].Settle(childLimit, d) != 1 {
			err = errors.New("not one event was in the last agent's hands")
		}
		return "", err
	case "event": // wait for one that was read
		<-w.events
		return "", nil
	case "lease": // KEY FILE
		return "", w.lease(words[0], w.files[words[1]])
	case "serve": // SOCKET: be a keeper
		return "", serveKeeper(words[0])
	case "listen": // SOCKET
		_, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: words[0], Net: "unixpacket"})
		return "", err
	}
	return "", fmt.Errorf("unknown word %q", what)
}

// childLimit bounds the numbers of a child's descriptors.
const childLimit = 256

func (w *worker) hello() (string, error) {
	a, entries, err := w.keeper.Hello(childLimit)
	if err != nil {
		return "", err
	}
	for i := range entries {
		if fd := entries[i].Take(Group); fd >= 0 {
			if w.groups[entries[i].Key], err = fanotify.AdoptGroup(fd); err != nil {
				return "", err
			}
			entries[i].Files = append(entries[i].Files, File{Group, fd}) // for the test to see
		}
	}
	text, err := json.Marshal(greeting{a, entries})
	return string(text), err
}

// guard makes a group with a mark on a directory's filesystem and has it kept, with
// the test's process as the container's.
func (w *worker) guard(key, grace, fallback, dir string) error {
	e := &Entry{Key: key, State: json.RawMessage(`{"of":"` + key + `"}`)}
	var err error
	if e.Grace, err = time.ParseDuration(grace); err != nil {
		return err
	}
	if e.Fallback, err = fallbackNamed(fallback); err != nil {
		return err
	}
	group, err := markedGroup(dir)
	if err != nil {
		return err
	}
	w.groups[key] = group
	fd, err := group.Duplicate()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(unix.Getppid(), 0)
	if err != nil {
		return err
	}
	e.Files = []File{{Group, fd}, {Process, pidfd}}
	defer e.Close()
	return w.keeper.Keep(e)
}

// markedGroup returns a group with a mark on a directory's filesystem.
func markedGroup(dir string) (*fanotify.Group, error) {
	group, err := fanotify.NewGroup()
	if err != nil {
		return nil, err
	}
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dirfd)
	return group, group.MarkSuperblock(dirfd, fanotify.OpOpen, dir)
}

// handlerFunc makes a Handler of a function.
type handlerFunc func(*fanotify.Event)

func (f handlerFunc) HandleEvent(ev *fanotify.Event) { f(ev) }

func (w *worker) serve(key string, h handlerFunc) error {
	readers, err := fanotify.StartAside()
	if err != nil {
		return err
	}
	return readers.Add(w.groups[key], h, func(int, error) {})
}

// lease marks a file under a lease that the keeper has, too, and would never give it
// back by itself.
func (w *worker) lease(key string, fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if _, err := w.keeper.Lease(key, fd); err != nil {
		return err
	}
	return w.groups[key].Ignore(fd)
}

func serveKeeper(socket string) error {
	ln, err := Listen(socket)
	if err != nil {
		return err
	}
	server := NewServer(Options{Logger: slog.New(slog.DiscardHandler)})
	go func() { _ = server.Serve(context.Background(), ln) }()
	return nil
}
