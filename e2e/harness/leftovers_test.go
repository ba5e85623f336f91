package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// scratchSuite returns a suite with nothing but its directory and a cgroup name.
func scratchSuite(t *testing.T) *Suite {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run as root: mounts and cgroups need it")
	}
	dir := t.TempDir()
	return &Suite{dir: dir, cgroup: "assay-harness-" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir)}
}

// wantLeft fails t unless err names what was left.
func wantLeft(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("want an error with %q: %v", part, err)
	}
}

func TestLeftProcess(t *testing.T) {
	s := scratchSuite(t)
	if err := s.noProcesses(); err != nil {
		t.Fatalf("before: %v", err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.Env = append(os.Environ(), "SCRATCH="+s.dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wantLeft(t, s.noProcesses(), "sleep")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if err := s.noProcesses(); err != nil {
		t.Errorf("after: %v", err)
	}
}

func TestLeftMount(t *testing.T) {
	s := scratchSuite(t)
	dir := filepath.Join(s.dir, "mounted")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	wantLeft(t, s.noMounts(), dir)
	if err := s.noMounts(); err != nil {
		t.Errorf("the mount was reported, but not taken away: %v", err)
	}
}

func TestLeftCgroup(t *testing.T) {
	s := scratchSuite(t)
	if err := s.noCgroups(); err != nil {
		t.Fatalf("before: %v", err)
	}
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = "/sys/fs/cgroup/pids" // version 1
	}
	group := filepath.Join(root, s.cgroup, "container")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := []byte(strconv.Itoa(cmd.Process.Pid))
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), pid, 0o600); err != nil {
		t.Error(err)
	}
	wantLeft(t, s.noCgroups(), "container holds processes")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	Eventually(t, "the empty cgroup is removed", s.noCgroups)
	if _, err := os.Stat(group); err == nil {
		t.Errorf("%s is still there", group)
	}
}
