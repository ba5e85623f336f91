package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/assay-project/assay/internal/announce"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"assay-hook":     main,
		"foreign-socket": foreignSocket,
	})
}

// TestScripts needs root, as the hook itself does: it believes no other
// socket, and a script starts one under another uid.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode":      cmdExitCode,
			"state":         cmdState,
			"podstate":      cmdPodState,
			"agent":         cmdAgent,
			"announced":     cmdAnnounced,
			"foreign-agent": cmdForeignAgent,
			"terminate":     cmdTerminate,
		},
	})
}

type agentKey struct{}

func setup(env *testscript.Env) error {
	env.Values[agentKey{}] = new(fakeAgent)
	env.Setenv("SOCKET", filepath.Join(env.WorkDir, "agent.sock"))
	bundle := filepath.Join(env.WorkDir, "bundle")
	env.Setenv("BUNDLE", bundle)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), []byte(`{"root":{"path":"rootfs"}}`), 0o600)
}

// cmdExitCode is `exitcode CODE ARGS...`: it runs assay-hook and checks the code.
func cmdExitCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("assay-hook", args[1:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("assay-hook ended with %v, want exit code %d", err, want)
	}
}

// cmdState is `state STATUS`: it makes the state of container c1 the next
// command's standard input, in the file "state".
func cmdState(ts *testscript.TestScript, _ bool, args []string) {
	writeState(ts, args[0], "{}")
}

// cmdPodState is `podstate FILE`: it does the same, with FILE's annotations.
func cmdPodState(ts *testscript.TestScript, _ bool, args []string) {
	writeState(ts, "creating", ts.ReadFile(args[0]))
}

func writeState(ts *testscript.TestScript, status, annotations string) {
	state := fmt.Sprintf(`{"ociVersion":"1.0.2","id":"c1","status":%q,"pid":%d,"bundle":%q,"annotations":%s}`,
		status, os.Getpid(), ts.Getenv("BUNDLE"), annotations)
	ts.Check(os.WriteFile(ts.MkAbs("state"), []byte(state), 0o600))
}

// A fakeAgent replies to announcements as a script says.
type fakeAgent struct {
	arrived chan struct{} // receives a value for each announcement
	seen    chan string   // the announcements
}

func agentOf(ts *testscript.TestScript) *fakeAgent {
	a, ok := ts.Value(agentKey{}).(*fakeAgent)
	if !ok {
		ts.Fatalf("the script has no agent")
	}
	return a
}

// cmdAgent is `agent STATUS BODY`: an HTTP server that answers so; `agent raw
// TEXT`: it sends TEXT ("\r\n" as escapes) and closes; `agent endless`: it
// goes on sending; or `agent silent`: it never answers. It ends with the script.
func cmdAgent(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("unix", ts.Getenv("SOCKET"))
	ts.Check(err)
	a := agentOf(ts)
	a.arrived, a.seen = make(chan struct{}, 64), make(chan string, 64)
	stop := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != announce.Path {
			http.Error(w, "unexpected request", http.StatusNotFound)
			return
		}
		a.seen <- string(body)
		a.arrived <- struct{}{}
		answer(w, args, stop)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with the listener
	}()
	ts.Defer(func() {
		close(stop)
		_ = server.Close()
		<-done
	})
}

func answer(w http.ResponseWriter, args []string, stop <-chan struct{}) {
	switch args[0] {
	case "silent":
		<-stop
	case "endless":
		for err := error(nil); err == nil; {
			_, err = io.WriteString(w, strings.Repeat("x", 1<<12))
		}
	case "raw":
		text := strings.ReplaceAll(args[1], `\r\n`, "\r\n")
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, text) // the hook may have seen enough and be gone
	default:
		status, err := strconv.Atoi(args[0])
		if err != nil {
			panic(err)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, args[1])
	}
}

// cmdAnnounced is `announced`: it prints what the agent was told into the file
// "announcement".
func cmdAnnounced(ts *testscript.TestScript, _ bool, _ []string) {
	a := agentOf(ts)
	select {
	case text := <-a.seen:
		ts.Check(os.WriteFile(ts.MkAbs("announcement"), []byte(text), 0o600))
	default:
		ts.Fatalf("nothing was announced")
	}
}

// cmdTerminate is `terminate FILE`: it starts assay-hook with FILE on its
// standard input, waits until the agent has the announcement, sends SIGTERM and
// checks that the hook ends by it.
func cmdTerminate(ts *testscript.TestScript, _ bool, args []string) {
	in, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer in.Close()
	cmd := exec.Command("assay-hook", "--socket", ts.Getenv("SOCKET"), "createRuntime")
	cmd.Stdin = in
	ts.Check(cmd.Start())
	<-agentOf(ts).arrived
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	err = cmd.Wait()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGTERM {
		ts.Fatalf("the hook ended with %v", err)
	}
}

// nobody is a uid that is not root's.
const nobody = 65534

// cmdForeignAgent is `foreign-agent`: a process of another uid takes the
// socket's place and calls every container guarded.
func cmdForeignAgent(ts *testscript.TestScript, _ bool, _ []string) {
	// The directories above the socket are root's alone.
	dir, err := os.MkdirTemp("", "assay-hook-test-")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	ts.Check(os.Chown(dir, nobody, nobody))
	socket := filepath.Join(dir, "agent.sock")
	ts.Setenv("FOREIGN", socket)

	cmd := exec.Command("foreign-socket", socket)
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	cmd.Stderr = os.Stderr
	ts.Check(cmd.Start())
	ts.Defer(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	ts.Check(err)
	if strings.TrimSpace(line) != "listening" {
		ts.Fatalf("the other process says %q", line)
	}
}

// foreignSocket is the other process: it gives up being root, listens on the
// socket named by its argument until its standard input ends, and calls every
// container guarded.
func foreignSocket() {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		panic(err)
	}
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"id":"c1"}`)
		}))
	}()
	fmt.Println("listening")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// Messages are one line of bounded length, whatever the agent has written.
func TestReport(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	report(f, "", "a\nb\x1b[31m\u202ec"+strings.Repeat("é", maxMessage))
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := "assay-hook: a b [31m c" + strings.Repeat("é", (maxMessage-10)/2) + "…\n"; string(data) != want {
		t.Fatalf("got %q, want %q", data, want)
	}
}

// What would be lost on /dev/null goes to the system log.
func TestReportNull(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	socket := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	report(null, socket, "nobody is home")
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := l.Read(buf)
	if want := fmt.Sprintf("<27>assay-hook[%d]: nobody is home", os.Getpid()); err != nil || string(buf[:n]) != want {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
}

func TestIsNull(t *testing.T) {
	for path, want := range map[string]bool{os.DevNull: true, "/dev/zero": false, "/proc/self/status": false} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := isNull(f); got != want {
			t.Errorf("%s: %v", path, got)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if isNull(f) {
			t.Errorf("%s: null although closed", path)
		}
	}
}
