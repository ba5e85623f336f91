package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelGarbage: nonsense is refused or ends the connection; it costs the keeper
// no descriptor, and others nothing.
func TestKernelGarbage(t *testing.T) {
	r := newRig(t)
	null, group := openNull(t), groupFD(t, kerneltest.NewOverlay(t, nil))
	defer unix.Close(group)
	keep := func(e string) string { return `{"op":"keep","entry":` + e + `}` }
	tests := []struct {
		name, text string
		files      []int
		says       string // in the refusal; "" for the end of the connection
	}{
		{"truncated", `{"op":"keep","entry":{"key":`, []int{group}, ""},
		{"no JSON", "\x00\x01\x02", []int{null, group}, ""},
		{"another type", `[1, 2]`, nil, ""},
		{"too long", `{"op":"` + strings.Repeat("x", maxMessage) + `"}`, []int{group}, ""},
		{"unknown request", `{"op":"sing"}`, []int{group}, "sing"},
		{"no request", `{}`, nil, "request"},
		{"second hello", `{"op":"hello","version":1}`, nil, "at work"},
		{"another version", `{"op":"hello","version":2}`, []int{group}, "version 1, not 2"},
		{"no entry", `{"op":"keep"}`, []int{group}, "without an entry"},
		{"no key", keep(`{"fallback":"deny","kinds":["group"]}`), []int{group}, "without an entry"},
		{"no fallback", keep(`{"key":"k","kinds":["group"]}`), []int{group}, "neither allow nor deny"},
		{"fewer descriptors than kinds", keep(`{"key":"k","fallback":"deny","kinds":["group","process"]}`), []int{group}, "1 descriptors arrived of 2"},
		{"more descriptors than kinds", keep(`{"key":"k","fallback":"deny","kinds":["group"]}`), []int{group, null}, "2 descriptors arrived of 1"},
		{"too many descriptors", keep(`{"key":"k","fallback":"deny","kinds":["group"]}`), many(null, maxFiles+1), "descriptors arrived"},
		{"unknown kind", keep(`{"key":"k","fallback":"deny","kinds":["group","song"]}`), []int{group, null}, "song"},
		{"no group", keep(`{"key":"k","fallback":"deny","kinds":["process","group"]}`), []int{null, null}, "not a fanotify group"},
		{"the second is no group", keep(`{"key":"k","fallback":"deny","kinds":["group","aside"]}`), []int{group, null}, "not a fanotify group"},
		{"two groups", keep(`{"key":"k","fallback":"deny","kinds":["group","group"]}`), []int{group, group}, "of no use"},
		{"lease of nobody", `{"op":"lease","key":"k","serial":1}`, []int{null}, "no entry"},
		{"lease without a descriptor", `{"op":"lease","key":"k","serial":1}`, nil, "0 descriptors"},
		{"lease of two", `{"op":"lease","key":"k","serial":1}`, []int{null, null}, "2 descriptors"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := descriptors(t)
			c, _, _ := r.hello(t)
			if err := sendText(c.conn, tt.text, tt.files); err != nil {
				t.Fatal(err)
			}
			_, err := c.receive()
			if tt.says == "" && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("got %v, want the end of the connection", err)
			}
			if tt.says != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("got %v, want a refusal that says %q", err, tt.says)
			}
			if tt.says != "" {
				if err := c.Beat(); err != nil {
					t.Errorf("the agent is lost after a request that was refused: %v", err)
				}
			}
			c.Close()
			r.awaitAlone(t)
			kerneltest.Await(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
			if st := r.status(); len(st.Entries) != 0 {
				t.Errorf("held: %+v", st.Entries)
			}
		})
	}
}

func openNull(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func many(fd, n int) []int {
	var fds []int
	for range n {
		fds = append(fds, fd)
	}
	return fds
}

// sendText sends any text.
func sendText(c *net.UnixConn, text string, files []int) error {
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_, _, err := c.WriteMsgUnix([]byte(text), rights, nil)
	return err
}

// TestKernelNotRoot: the socket is root's. Somebody else who gets through to it all
// the same is turned away, and so is a socket that somebody else serves.
func TestKernelNotRoot(t *testing.T) {
	r := newRig(t)
	dir := filepath.Dir(r.socket)
	for _, dir := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // for the other user
			t.Fatal(err)
		}
	}
	nobody := startChild(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	})
	if reply, err := nobody.try("hello", r.socket); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("another user connects: %q, %v", reply, err)
	}
	if err := os.Chmod(r.socket, 0o777); err != nil { //nolint:gosec // for the other user
		t.Fatal(err)
	}
	if reply, err := nobody.try("hello", r.socket); err == nil {
		t.Errorf("another user is the agent: %q", reply)
	}
	if st := r.status(); st.Agent != 0 {
		t.Errorf("the agent is %d", st.Agent)
	}
	trap := filepath.Join(dir, "trap.sock")
	nobody.do(t, "listen", trap)
	before := descriptors(t)
	if _, err := Dial(t.Context(), trap); err == nil || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("another user's socket was taken for the keeper's: %v", err)
	}
	if n := descriptors(t) - before; n > 0 {
		t.Errorf("%d descriptors are left of it", n)
	}
}

// TestKernelKeeperOutOfDescriptors: a keeper that cannot hand an entry over says so,
// and nobody takes what came before it for everything.
func TestKernelKeeperOutOfDescriptors(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	keeper := startChild(t)
	keeper.do(t, "serve", socket)
	c := dialAlone(t, socket)
	if _, _, err := c.Hello(testLimit); err != nil {
		t.Fatal(err)
	}
	const entries = 4
	for i := range entries {
		e := newEntry(t, fmt.Sprint(i), kerneltest.NewOverlay(t, nil))
		if i == 0 {
			e.Files = append(e.Files, File{Aside, groupFD(t, kerneltest.NewOverlay(t, nil))})
		}
		if err := c.Keep(e); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	for range 5 { // the entries come in any order
		c = dialAlone(t, socket)
		restore := limitDescriptors(t, keeper.cmd.Process.Pid, 2) // enough for all but the first
		for range 2 {
			if _, got, err := c.Hello(testLimit); err == nil {
				t.Errorf("hello to a keeper without descriptors: %d entries of %d, and no error", len(got), entries)
			}
		}
		restore()
		c.Close()
	}
	_, got, err := dialAlone(t, socket).Hello(testLimit)
	if err != nil || len(got) != entries {
		t.Errorf("%d entries came when there were descriptors again, %v, want %d", len(got), err, entries)
	}
	for i := range got {
		got[i].Close()
	}
}

// dialAlone connects to a keeper that knows of no agent, as soon as it does not.
func dialAlone(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	kerneltest.Await(t, "the agent is gone", func() bool {
		st, err := c.Status()
		if err != nil {
			t.Fatal(err)
		}
		return st.Agent == 0
	})
	return c
}

// limitDescriptors leaves a process so many numbers for new descriptors.
func limitDescriptors(t *testing.T, pid, free int) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Max: was.Max}
	for ; free > 0; limit.Cur++ {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, limit.Cur)); err != nil {
			free--
		}
	}
	set := func(to unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &to, nil); err != nil {
			t.Fatal(err)
		}
	}
	set(limit)
	return func() { set(was) }
}

// TestListen: there is one keeper at a socket, and one that was killed is no obstacle.
func TestListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "new", "keeper.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", st.Mode(), err)
	}
	if _, err := Listen(socket); !errors.Is(err, ErrRunning) {
		t.Errorf("a second keeper: %v, want ErrRunning", err)
	}
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		t.Fatalf("the second keeper has taken the first one's socket: %v", err)
	}
	_ = conn.Close()
}

// TestKernelListenAgain: a keeper that was killed leaves a socket, which the next takes.
func TestKernelListenAgain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	for range 2 {
		keeper := startChild(t)
		keeper.do(t, "serve", socket)
		c, err := Dial(context.Background(), socket)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := c.Status(); err != nil || st.PID != keeper.cmd.Process.Pid || c.PID() != st.PID {
			t.Errorf("the status is %+v, %v", st, err)
		}
		c.Close()
		keeper.kill()
	}
}

// FuzzMessage: whatever arrives, with however many descriptors, is refused or decoded,
// and no descriptor is left of it.
func FuzzMessage(f *testing.F) {
	for _, text := range []string{
		``, `{`, `{"op":"keep","entry":{"key":"k","grace":1,"fallback":"deny","kinds":["group","process"]}}`,
		`{"op":"keep","entry":{"key":"k","fallback":"allow","state":{"a":[1]},"kinds":["aside"]},"unlease":[1,2]}`,
		`{"entry":null}`, `{"entry":{"kinds":[""]}}`,
	} {
		for n := range 3 {
			f.Add([]byte(text), n)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	near, far := packetConn(f, pair[0]), packetConn(f, pair[1])
	f.Fuzz(func(t *testing.T, text []byte, files int) {
		if len(text) == 0 || files < 0 || files > 2*maxFiles {
			return // no packet
		}
		pipe := [2]int{}
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		err := sendText(far, string(text), many(pipe[1], files))
		_ = unix.Close(pipe[1])
		if err != nil {
			return // too long
		}
		m, err := receive(near)
		if err == nil {
			decodeOnce(t, m)
			m.close()
		}
		// Nobody has the other end any more, if everything is closed.
		if n, err := unix.Read(pipe[0], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("a descriptor is left of %q with %d: %v", text, files, err)
		}
	})
}

// decodeOnce decodes an entry and wants it to survive another round.
func decodeOnce(t *testing.T, m *message) {
	t.Helper()
	e, err := m.decodeEntry()
	if err != nil {
		return
	}
	defer e.Close()
	w, fds := encodeEntry(&e)
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatalf("%+v cannot be sent on: %v", e, err)
	}
	var back entry
	if err := json.Unmarshal(text, &back); err != nil || len(fds) != len(back.Kinds) || back.Key != e.Key {
		t.Errorf("%+v became %+v, %v", w, back, err)
	}
}

func packetConn(f *testing.F, fd int) *net.UnixConn {
	f.Helper()
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	c, ok := conn.(*net.UnixConn)
	if !ok {
		f.Fatalf("%T is no unix connection", conn)
	}
	return c
}
