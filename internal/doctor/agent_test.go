package doctor

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/api"
)

var errUnused = errors.New("not part of these tests")

// A fakeBackend only has a status; any other call panics.
type fakeBackend struct {
	api.Backend

	status api.Status
}

func (b *fakeBackend) Status(context.Context) api.Status { return b.status }

// serve runs an agent with the given status until the test ends.
func serve(t *testing.T, socket string, status api.Status) {
	t.Helper()
	ln, err := api.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server, served := api.NewServer(&fakeBackend{status: status}, slog.New(slog.DiscardHandler)), make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served); err != nil {
			t.Errorf("server: %v", err)
		}
	})
}

func TestAskAgent(t *testing.T) {
	o := fakeOptions(t)
	serve(t, o.Socket, api.Status{
		Version: "7", Healthy: true, Containers: make([]api.ContainerStatus, 150),
	})
	report, check := askAgent(t.Context(), o, false)
	want(t, check, OK, "version 7", "")
	if report == nil || report.pid != os.Getpid() || report.containers != 150 {
		t.Fatalf("report %+v, want pid %d and 150 containers", report, os.Getpid())
	}

	// Its rights and limits count, and the number of its containers.
	n := fakeNode(t)
	writeProcess(t, n.proc, "self", rootUser, "0", "1", ownMap)
	writeProcess(t, n.proc, strconv.Itoa(report.pid), rootUser, allCaps, "2", hostMap)
	write(t, filepath.Join(n.proc, "sys/fs/fanotify/max_user_groups"), "130\n")
	checks := n.examine(t.Context(), o)
	want(t, find(t, checks, AreaPrivileges, "CAP_SYS_ADMIN"), OK, "", "")
	want(t, find(t, checks, AreaLimits, "RLIMIT_NOFILE"), Warn, "2 for the agent (pid ", "LimitNOFILE")
	groups := find(t, checks, AreaLimits, "fs.fanotify.max_user_groups")
	want(t, groups, Warn, "150 containers", "sysctl")
	if strings.Contains(groups.Remedy, "start the agent") {
		t.Errorf("the agent runs, but the remedy is %q", groups.Remedy)
	}
	o.Socket += ".none"
	o.Containers = 150
	want(t, find(t, n.examine(t.Context(), o), AreaLimits, "fs.fanotify.max_user_groups"), Warn, "150 containers", "start the agent")
}

func TestAskAgentThatIsUnhealthy(t *testing.T) {
	o := fakeOptions(t)
	serve(t, o.Socket, api.Status{Problems: []string{"disk is full", "clamd is down"}})
	report, check := askAgent(t.Context(), o, true)
	want(t, check, Fail, "disk is full; clamd is down", "assay status")
	if report == nil {
		t.Error("no report although an agent answered")
	}
}

func TestAskAgentThatIsNotThere(t *testing.T) {
	o := fakeOptions(t)
	_, check := askAgent(t.Context(), o, false)
	want(t, check, Unknown, "no such file", "start the agent")
	_, check = askAgent(t.Context(), o, true)
	want(t, check, Warn, "a hook is installed", "start the agent")
}

func TestAskAgentThatSpeaksSomethingElse(t *testing.T) {
	o := fakeOptions(t)
	l, err := net.Listen("unix", o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH\r\n"))
			_ = c.Close()
		}
	}()
	report, check := askAgent(t.Context(), o, false)
	_ = l.Close()
	<-done
	want(t, check, Fail, "gives no status", "same version")
	if report == nil || report.pid != os.Getpid() {
		t.Errorf("report %+v, want who listens", report)
	}
}

func TestAskAgentThatIsNotRoots(t *testing.T) {
	o := fakeOptions(t)
	fd := listenAs(t, o.Socket, 65534)
	defer func() { _ = unix.Close(fd) }()
	report, check := askAgent(t.Context(), o, false)
	want(t, check, Fail, "uid 65534, not by root", "ss -xlp")
	if report != nil {
		t.Errorf("report %+v of an agent that is not to be trusted", report)
	}
}

// listenAs listens on a socket as another user. The kernel takes the listener's
// identity from the thread that calls listen(2), so a thread changes its own for
// that call.
func listenAs(t *testing.T, socket string, uid uintptr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become(t, uid)
	defer become(t, rootUser)
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	return fd
}

// become changes the effective uid of this thread alone.
func become(t *testing.T, uid uintptr) {
	t.Helper()
	keep := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uid, keep); errno != 0 {
		t.Fatal(errno)
	}
}

func TestAskAgentWithoutPermission(t *testing.T) {
	var check Check
	describeUnreachable(&check, &net.OpError{Op: "dial", Err: os.ErrPermission}, true)
	want(t, check, Unknown, "only root", "sudo")
}

func TestRunOnThisMachine(t *testing.T) {
	for _, c := range Run(t.Context(), *fakeOptions(t)) {
		if c.Status == Unknown && c.Area == AreaKernel || c.Status == Fail && c.Area == AreaPrivileges {
			t.Errorf("on a machine that runs these tests as root: %+v", c)
		}
		if strings.Contains(c.Detail, "%!") || strings.Contains(c.Remedy, "%!") {
			t.Errorf("badly formatted: %+v", c)
		}
	}
}
