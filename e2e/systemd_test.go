package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestServiceManager plays systemd: the agent says when it is ready, feeds the
// watchdog, tells of a reload, even of one that is asked for the moment it is
// ready, and of its end.
func TestServiceManager(t *testing.T) {
	dir := suite.Scratch(t)
	config := filepath.Join(dir, "assay.yaml")
	text := "socket: " + filepath.Join(dir, "agent.sock") + "\nstate: " + filepath.Join(dir, "state") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	agent := exec.CommandContext(t.Context(), suite.Bin("assayd"), "--config", config)
	agent.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String(), "WATCHDOG_USEC=200000")
	agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()

	wantNotice(t, manager, "READY=1")
	for _, step := range []struct {
		signal syscall.Signal
		says   []string
	}{
		{unix.SIGHUP, []string{"RELOADING=1", "READY=1", "WATCHDOG=1", "WATCHDOG=1"}},
		{unix.SIGTERM, []string{"STOPPING=1"}},
	} {
		if err := agent.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
		for _, says := range step.says {
			wantNotice(t, manager, says)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

// wantNotice reads notices until one has the line says.
func wantNotice(t *testing.T, manager *net.UnixConn, says string) {
	t.Helper()
	if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatalf("no %s: %v", says, err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), says) {
			return
		}
	}
}
