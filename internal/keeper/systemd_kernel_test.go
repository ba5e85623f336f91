package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// A manager plays systemd's descriptor store (sd_notify(3), FDSTORE=1): it keeps what
// it is sent, and passes copies of all of it to each process that it starts
// (sd_listen_fds(3)).
type manager struct {
	conn  *net.UnixConn
	store []storedFile
}

type storedFile struct {
	name string
	file *os.File
}

func newManager(t *testing.T) *manager {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: conn}
	t.Cleanup(func() {
		_ = conn.Close()
		m.drop(func(string) bool { return true })
	})
	return m
}

// start starts a child as systemd would, with another's socket first.
func (m *manager) start(t *testing.T) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return startChild(t, func(cmd *exec.Cmd) {
		// The environment names the process that the descriptors are for.
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, self}
		names := []string{"other.socket"}
		cmd.ExtraFiles = []*os.File{null}
		for _, s := range m.store {
			names = append(names, s.name)
			cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
		}
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.conn.LocalAddr().String(),
			fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	})
}

// take takes everything that was sent: what a service says is in the queue before it
// goes on.
func (m *manager) take(t *testing.T) {
	t.Helper()
	for {
		text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*16))
		if err := m.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, rn, _, _, err := m.conn.ReadMsgUnix(text, rights)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		fds, err := parseRights(rights[:rn])
		if err != nil {
			t.Fatal(err)
		}
		m.notice(t, strings.Split(string(text[:n]), "\n"), fds)
	}
}

func (m *manager) notice(t *testing.T, lines []string, fds []int) {
	t.Helper()
	name := ""
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = value
		}
	}
	// A name has at most 255 printable characters and no colon.
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) || len(name) > 255 || name == "" {
		t.Errorf("systemd takes no name like %q", name)
	}
	switch {
	case slices.Contains(lines, "FDSTORE=1"):
		if !slices.Contains(lines, "FDPOLL=0") {
			t.Errorf("%s is dropped as soon as it hangs up", name)
		}
		for _, fd := range fds {
			m.store = append(m.store, storedFile{name, os.NewFile(uintptr(fd), name)})
		}
	case slices.Contains(lines, "FDSTOREREMOVE=1"):
		m.drop(func(stored string) bool { return stored == name })
	default:
		t.Errorf("systemd was told %q", lines)
	}
}

// drop closes what has one of the names.
func (m *manager) drop(is func(name string) bool) {
	m.store = slices.DeleteFunc(m.store, func(s storedFile) bool {
		if !is(s.name) {
			return false
		}
		_ = s.file.Close()
		return true
	})
}

// TestKernelSystemd: systemd gives the next agent what the last one has put into its
// store, and openers wait for that.
func TestKernelSystemd(t *testing.T) {
	m := newManager(t)
	o := kerneltest.NewOverlay(t, map[string]string{"read": "content", "unread": "content"})
	other := kerneltest.NewOverlay(t, nil)
	agent := m.start(t)
	if g := agent.hello(t, "systemd"); len(g.Entries) != 0 {
		t.Errorf("a new service was passed %+v", g)
	}
	agent.do(t, "guard", "with/slash:and colon", "1m", "allow", o.Merged)
	agent.do(t, "guard", "gone", "1h", "deny", other.Merged)
	agent.do(t, "forget", "gone")
	agent.do(t, "read", "with/slash:and colon")
	read := kerneltest.Begin(o.Path("read"))
	agent.do(t, "event")
	m.take(t)
	agent.kill()
	unread := kerneltest.Begin(o.Path("unread"))

	next := m.start(t)
	g := next.hello(t, "systemd")
	if len(g.Entries) != 1 {
		t.Fatalf("the next agent was passed %+v, want one entry", g)
	}
	e := g.Entries[0]
	if e.Key != "with/slash:and colon" || e.Grace != time.Minute || e.Fallback != fanotify.Allow ||
		!bytes.Contains(e.State, []byte(e.Key)) || len(e.Files) != 2 {
		t.Errorf("the entry came back as %+v", e)
	}
	if g.Absence.Limit != childLimit || g.Absence.ClockMoved > time.Second || g.Absence.Why == "" {
		t.Errorf("the absence is %+v", g.Absence)
	}
	read.WantWaits(t)
	unread.WantWaits(t)
	next.do(t, "settle", e.Key, "deny")
	read.WantError(t, unix.EPERM)
	next.do(t, "answer", e.Key)
	unread.WantContent(t, "content")
	next.do(t, "forget", e.Key)
	m.take(t)
	if len(m.store) != 0 {
		t.Errorf("in the store when everything was forgotten: %v", m.store)
	}
}

// TestKernelSystemdKeepAgain: what is kept again is described anew, also by an agent
// that did not store it.
func TestKernelSystemdKeepAgain(t *testing.T) {
	m := newManager(t)
	o := kerneltest.NewOverlay(t, nil)
	grace := time.Minute
	for i := range 3 {
		agent := m.start(t)
		g := agent.hello(t, "systemd")
		if len(g.Entries) != min(i, 1) || len(g.Entries) == 1 && g.Entries[0].Grace != grace {
			t.Fatalf("the agent was passed %+v, want one entry with a grace of %v", g, grace)
		}
		grace *= 2
		agent.do(t, "guard", "key", grace.String(), "deny", o.Merged)
		m.take(t)
		if len(m.store) != 3 {
			t.Errorf("%d descriptors are stored, want group, process and description: %v", len(m.store), m.store)
		}
		agent.kill()
	}
}

// TestKernelSystemdWithoutDescription: an entry whose description was not stored any
// more, because the agent died meanwhile, leaves nothing in the store: openers would
// wait for ever.
func TestKernelSystemdWithoutDescription(t *testing.T) {
	m := newManager(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	agent := m.start(t)
	agent.hello(t, "systemd")
	agent.do(t, "guard", "key", "1m", "deny", o.Merged)
	m.take(t)
	agent.kill()
	m.drop(func(name string) bool { return strings.HasSuffix(name, string(stateKind)) })
	opener := kerneltest.Begin(o.Path("file"))
	next := m.start(t)
	if g := next.hello(t, "systemd"); len(g.Entries) != 0 {
		t.Errorf("an entry without a description: %+v", g)
	}
	m.take(t)
	if len(m.store) != 0 {
		t.Errorf("left in the store: %v", m.store)
	}
	opener.WantContent(t, "content")
}

// TestSystemdAbsent: who was not started by systemd is told so.
func TestSystemdAbsent(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	t.Setenv("NOTIFY_SOCKET", "")
	if _, err := OpenSystemd(log); err == nil || !strings.Contains(err.Error(), "NOTIFY_SOCKET") {
		t.Errorf("without a socket: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if _, err := OpenSystemd(log); err == nil {
		t.Error("nobody listens, and there is no error")
	}
}

// TestSystemdLease: leases are refused, and what was passed to another process is not
// ours.
func TestSystemdLease(t *testing.T) {
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", addr.Name)
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_FDNAMES", storedName("key", Group))
	s, err := OpenSystemd(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, entries, err := s.Hello(testLimit); err != nil || len(entries) != 0 {
		t.Errorf("descriptors of another process: %+v, %v", entries, err)
	}
	_, err = s.Lease("key", 0)
	wantRefused(t, "a lease", err)
}
