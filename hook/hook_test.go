package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/assay-project/assay/internal/announce"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnnouncement(t *testing.T) {
	dir := bundle(t, "rootfs")
	state := &specs.State{
		ID: "c1", Pid: 4711, Bundle: dir, Status: specs.StateCreating,
		Annotations: map[string]string{
			"io.kubernetes.cri.container-name":     "app",
			"io.kubernetes.cri.sandbox-name":       "app-0",
			"io.kubernetes.cri.sandbox-namespace":  "payments",
			"io.kubernetes.cri.image-name":         "registry/app:1",
			"org.opencontainers.image.ref.name":    "x" + strings.Repeat("é", maxLabel),
			"assay.example/somebody-elses-setting": "off",
		},
	}
	got, err := announcement(state, &Options{Stage: CreateRuntime, Namespace: "web"})
	if err != nil {
		t.Fatal(err)
	}
	want := announce.Container{
		ID: "c1", PID: 4711, Bundle: dir, Rootfs: dir + "/rootfs", Namespace: "web",
		Name: "app", Pod: "app-0", Image: "registry/app:1", Source: "hook:createRuntime",
		Labels: map[string]string{
			"io.kubernetes.cri.container-name":    "app",
			"io.kubernetes.cri.sandbox-name":      "app-0",
			"io.kubernetes.cri.sandbox-namespace": "payments",
			"io.kubernetes.cri.image-name":        "registry/app:1",
			"org.opencontainers.image.ref.name":   "x" + strings.Repeat("é", maxLabel/2-1),
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got\n%+v, want\n%+v", got, want)
	}
}

// A namespace in annotations selects nothing.
func TestAnnouncementNamespace(t *testing.T) {
	state := &specs.State{
		ID: "c1", Pid: 4711, Bundle: bundle(t, "rootfs"), Status: specs.StateCreated,
		Annotations: map[string]string{"io.kubernetes.pod.namespace": "assay-system"},
	}
	c, err := announcement(state, &Options{Stage: Prestart})
	if err != nil {
		t.Fatal(err)
	}
	if c.Namespace != "" || c.Source != "hook:prestart" {
		t.Fatalf("got %+v", c)
	}
}

func TestAnnouncementErrors(t *testing.T) {
	for name, state := range map[string]*specs.State{
		"no bundle": {ID: "c1", Pid: 7, Bundle: "/nonexistent"},
		"no id":     {Pid: 7, Bundle: bundle(t, "rootfs")},
		"bad id":    {ID: "a/b", Pid: 7, Bundle: bundle(t, "rootfs")},
	} {
		if _, err := announcement(state, &Options{Stage: Prestart}); !errors.Is(err, ErrState) {
			t.Errorf("%s: error %v, want ErrState", name, err)
		}
	}
}

// listen returns a unix socket's path and listener.
func listen(t *testing.T) (string, *net.UnixListener) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, l
}

// rawAgent runs serve for the one connection that comes.
func rawAgent(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path, l := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

// replies returns an agent that reads the announcement, replies and closes.
func replies(t *testing.T, reply string) string {
	t.Helper()
	return rawAgent(t, func(c net.Conn) {
		if err := readRequest(c); err != nil {
			t.Error(err)
			return
		}
		// The hook may have seen enough and be gone.
		_, _ = io.WriteString(c, reply)
	})
}

func readRequest(r io.Reader) error {
	// The body of every test's announcement ends with the only nested "}}".
	var data []byte
	for !strings.HasSuffix(string(data), "}}") {
		buf := make([]byte, 4096)
		n, err := r.Read(buf)
		if err != nil {
			return fmt.Errorf("after %q: %w", data, err)
		}
		data = append(data, buf[:n]...)
	}
	return nil
}

func container() *announce.Container {
	return &announce.Container{ID: "c1", PID: 4711, Rootfs: "/r", Labels: map[string]string{"a": "b"}}
}

const (
	stopping = `{"error":"the agent is stopping","remedy":"later"}`
	guarded  = `{"id":"c1","tenant":"default","marks":3}`
)

func response(status, body string) string {
	return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

// generous is a deadline that only a hanging test reaches.
const generous = time.Minute

func TestSendReplies(t *testing.T) {
	tests := []struct {
		name, reply string
		is          error  // nil and text "": guarded
		text        string // part of the error
	}{
		{name: "guarded", reply: response("200 OK", guarded)},
		{name: "in two parts", reply: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\n6\r\n:\"c1\"}\r\n0\r\n\r\n"},
		{name: "another container", reply: response("200 OK", `{"id":"c2"}`), is: ErrReply, text: `container "c2"`},
		{name: "no id", reply: response("200 OK", `{}`), is: ErrReply, text: `container ""`},
		{name: "not JSON", reply: response("200 OK", "hello"), is: ErrReply, text: "invalid character"},
		{name: "other success", reply: response("202 Accepted", guarded), is: ErrReply, text: "status 202"},
		{name: "refusal without a message", reply: response("404 Not Found", "404 page not found"), is: ErrReply, text: "status 404"},
		{name: "closed at once", reply: "", is: ErrReply, text: "hung up"},
		{name: "closed after a byte", reply: "H", is: ErrReply, text: "ends too early"},
		{name: "stopping", reply: response("503 Service Unavailable", stopping), is: ErrAgentMissing, text: "the agent is stopping (later)"},
		{name: "half a reply", reply: "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{\"id\":\"c1\"", is: ErrReply, text: "ends too early"},
		{name: "endless header", reply: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", maxReply), is: ErrReply, text: "more than 65536 bytes"},
		{name: "endless body", reply: "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("a", maxReply), is: ErrReply, text: "more than 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := send(container(), &Options{Socket: replies(t, tt.reply), Timeout: generous})
			if tt.is == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.is, tt.text)
			}
		})
	}
}

func TestSendRefusal(t *testing.T) {
	socket := replies(t, response("409 Conflict", `{"error":"no overlay","remedy":"use the overlay driver"}`))
	err := send(container(), &Options{Socket: socket, Timeout: generous})
	var refusal *announce.Refusal
	if !errors.As(err, &refusal) || refusal.Message != "no overlay" || refusal.Remedy != "use the overlay driver" {
		t.Fatalf("error %v", err)
	}
}

// An agent that turns callers away may reply and close without reading.
func TestSendRepliedUnread(t *testing.T) {
	socket := rawAgent(t, func(c net.Conn) {
		if _, err := io.WriteString(c, response("403 Forbidden", `{"error":"go away"}`)); err != nil {
			t.Error(err)
		}
	})
	err := send(container(), &Options{Socket: socket, Timeout: generous})
	var refusal *announce.Refusal
	if !errors.As(err, &refusal) || refusal.Message != "go away" {
		t.Fatalf("error %v", err)
	}
}

// An agent that breaks off while it reads resets the connection.
func TestSendReset(t *testing.T) {
	socket := rawAgent(t, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	if err := send(container(), &Options{Socket: socket, Timeout: generous}); !errors.Is(err, ErrReply) {
		t.Fatalf("error %v, want ErrReply", err)
	}
}

// The request must please a real HTTP server, and its replies the hook.
func TestSendNetHTTP(t *testing.T) {
	socket, l := listen(t)
	seen := make(chan announce.Container, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c announce.Container
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil || r.Method != http.MethodPost || r.URL.Path != announce.Path || !r.Close {
			t.Errorf("%s %s close=%v: %v", r.Method, r.URL, r.Close, err)
		}
		seen <- c
		fmt.Fprintf(w, `{"id":%q`, c.ID)
		if err := http.NewResponseController(w).Flush(); err != nil { // makes it chunked
			t.Error(err)
		}
		fmt.Fprint(w, `,"marks":1}`)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if err := send(container(), &Options{Socket: socket, Timeout: generous}); err != nil {
		t.Error(err)
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if got := <-seen; !reflect.DeepEqual(&got, container()) {
		t.Errorf("the agent got %+v", got)
	}
}

// An agent that hangs is present: never ErrAgentMissing.
func TestSendTimeout(t *testing.T) {
	release := make(chan struct{})
	socket := rawAgent(t, func(net.Conn) { <-release })
	err := send(container(), &Options{Socket: socket, Timeout: 50 * time.Millisecond})
	close(release)
	if !errors.Is(err, ErrTimeout) || errors.Is(err, ErrAgentMissing) {
		t.Fatalf("error %v, want ErrTimeout", err)
	}
}

// An announcement that does not fit into the socket's buffers waits, too.
func TestSendTimeoutSending(t *testing.T) {
	release := make(chan struct{})
	socket := rawAgent(t, func(net.Conn) { <-release })
	c := container()
	c.Labels["a"] = strings.Repeat("x", announce.MaxBytes-1000)
	err := send(c, &Options{Socket: socket, Timeout: 50 * time.Millisecond})
	close(release)
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("error %v, want ErrTimeout", err)
	}
}

// A reply that comes too late is none, even if it is there at once.
func TestSendNoTimeLeft(t *testing.T) {
	socket := rawAgent(t, func(c net.Conn) { _, _ = io.WriteString(c, response("200 OK", guarded)) })
	if err := send(container(), &Options{Socket: socket, Timeout: 0}); !errors.Is(err, ErrTimeout) {
		t.Fatalf("error %v, want ErrTimeout", err)
	}
}

func TestSendMissing(t *testing.T) {
	stale, l := listen(t)
	l.SetUnlinkOnClose(false)
	l.Close()
	notSocket := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notSocket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, socket := range map[string]string{
		"no directory": "/nonexistent/agent.sock",
		"no file":      filepath.Join(t.TempDir(), "none"),
		"stale socket": stale,
		"not a socket": notSocket,
	} {
		t.Run(name, func(t *testing.T) {
			err := send(container(), &Options{Socket: socket, Timeout: generous})
			if !errors.Is(err, ErrAgentMissing) || !strings.Contains(err.Error(), "start assayd") {
				t.Fatalf("error %v, want ErrAgentMissing with its remedy", err)
			}
		})
	}
}

// Other failures to connect do not count as a missing agent.
func TestSendCannotConnect(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "datagram")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := send(container(), &Options{Socket: socket, Timeout: generous}); err == nil || errors.Is(err, ErrAgentMissing) {
		t.Fatalf("error %v", err)
	}
}

func TestSendTooLong(t *testing.T) {
	c := container()
	c.Labels["a"] = strings.Repeat("x", announce.MaxBytes)
	if err := send(c, &Options{Socket: "/nonexistent", Timeout: generous}); !errors.Is(err, ErrState) {
		t.Fatalf("error %v, want ErrState", err)
	}
}

func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Syslog(socket, "assay-hook", 7, "nobody is home"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "<27>assay-hook[7]: nobody is home" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	if err := Syslog(socket+"x", "assay-hook", 7, "nobody is home"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}
