package guard

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestKernelHangingVolume stops the server of a container's FUSE volume. Opens
// there hang, as they would without a guard; opens on the same container's root
// and in another container must not.
func TestKernelHangingVolume(t *testing.T) {
	source, volume := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := serveFUSE(t, source, volume)
	g := asideGuard(t)
	victim := kerneltest.NewContainer(t, map[string]string{"root": "content", "vol/x": ""}, "mount --bind "+volume+" vol")
	neighbour := kerneltest.NewContainer(t, map[string]string{"root": "content"}, "")
	for _, c := range []*kerneltest.Container{victim, neighbour} {
		if _, err := g.Announce(t.Context(), announce.Container{ID: fmt.Sprint("c", c.PID), PID: c.PID, Rootfs: c.Merged}); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := victim.Shell(t, "cat vol/file"); err != nil || out != "content" {
		t.Fatalf("the volume: %q, %v", out, err)
	}
	if err := server.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stuck := openers(t, victim, 2*fanotify.DefaultReaders())
	for range 10 {
		for _, c := range []*kerneltest.Container{victim, neighbour} {
			if got, err := os.ReadFile(c.Path("root")); err != nil || string(got) != "content" {
				t.Fatalf("a root filesystem while the volume hangs: %q, %v", got, err)
			}
		}
	}
	if err := server.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, o := range stuck {
		if err := o.Wait(); err != nil {
			t.Errorf("an opener that waited for the volume: %v", err)
		}
	}
}

// asideGuard returns a guard whose scanner needs a worker and finds nothing.
func asideGuard(t *testing.T) *Guard {
	t.Helper()
	readers, err := fanotify.Start(fanotify.DefaultReaders())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	records, err := audit.NewLog(audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fake := scannertest.NewFake("1", scannertest.Contains("malware", "Test.Malware"))
	cfg := tenant.Default()
	g := New(Options{Readers: readers, Records: records}, cfg, map[string]scanner.Named{
		cfg.Scanners[0].Name: {Name: cfg.Scanners[0].Name, Scanner: fake},
	})
	t.Cleanup(func() { g.Close(t.Context()) })
	return g
}

// serveFUSE serves source at mountpoint until the test ends, and returns the
// server.
func serveFUSE(t *testing.T, source, mountpoint string) *os.Process {
	t.Helper()
	cmd := exec.Command("bindfs", "-f", "--no-allow-other", "-o", "attr_timeout=3600,entry_timeout=3600", source, mountpoint)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (apt-get install bindfs)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT)
		_ = unix.Unmount(mountpoint, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for {
		if _, err := os.Stat(filepath.Join(mountpoint, "file")); err == nil {
			return cmd.Process
		}
		if err := cmd.Process.Signal(syscall.Signal(0)); errors.Is(err, os.ErrProcessDone) || t.Context().Err() != nil {
			t.Fatal("bindfs did not mount")
		}
	}
}

// openers starts processes that open the volume's file, and returns once all
// wait for an answer.
func openers(t *testing.T, c *kerneltest.Container, n int) []*exec.Cmd {
	t.Helper()
	var all []*exec.Cmd
	for range n {
		cmd := exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", c.PID), "--",
			"sh", "-c", `echo opening; exec cat "$0" >/dev/null`, filepath.Join(c.Merged, "vol/file"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		if line, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(line) != "opening" {
			t.Fatalf("an opener said %q: %v", line, err)
		}
		all = append(all, cmd)
	}
	for _, cmd := range all {
		for !waitsForAnswer(cmd.Process.Pid) {
			if t.Context().Err() != nil {
				t.Fatal("an opener never came to wait for an answer")
			}
			runtime.Gosched()
		}
	}
	return all
}

// waitsForAnswer reports whether the kernel holds pid until fanotify answers.
func waitsForAnswer(pid int) bool {
	where, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return err == nil && strings.HasPrefix(string(where), "fanotify")
}
