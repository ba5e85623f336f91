package e2e

import (
	"fmt"
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

	"github.com/assay-project/assay/e2e/harness"
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

// TestDescriptorStore: with systemd's descriptor store for a keeper, a container stays
// guarded over the agent's end: its opens wait for the next agent.
func TestDescriptorStore(t *testing.T) {
	for _, end := range ends() {
		t.Run(end.name, func(t *testing.T) {
			agent := suite.StartStoredAgent(t, "keeper: {backend: systemd}\n"+suite.Hashes(t))
			c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			for range 3 {
				wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile),
					harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")
			}
			end.how(agent, t)

			read := make(chan harness.Result, 1)
			go func() { read <- c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile) }()
			harness.Eventually(t, "the exec waits", func() error { return blocked(c.PID(t)) })
			agent.Restart(t)
			wantRead(t, <-read, harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")

			wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile),
				harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")
			if s := agent.Status(t); !s.Healthy || len(s.Containers) != 1 {
				t.Errorf("status after the take-over: healthy %v (%q), %d containers", s.Healthy, s.Problems, len(s.Containers))
			}
			// A container that was lost is guarded anew, too late.
			if log := agent.Log(t); !strings.Contains(log, "took over") || strings.Contains(log, "without a gate") {
				t.Error("the log tells of no take-over, or of a container without a gate")
			}
			if n := len(agent.Stored(t)); n < 3 {
				t.Errorf("%d descriptors are stored, want at least group, process and description", n)
			}
			c.Kill(t)
			harness.Eventually(t, "nothing is stored of a container that has ended", func() error {
				if names := agent.Stored(t); len(names) > 0 {
					return fmt.Errorf("stored: %q", names)
				}
				return nil
			})
		})
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
