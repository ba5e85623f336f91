package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/pidfd"
)

// TestHolderOf: only a process that holds the lock and is the right program is found.
func TestHolderOf(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Base(exe)
	lock := filepath.Join(t.TempDir(), "lock")
	wantNobody := func(why string) {
		t.Helper()
		if h, err := holderOf(lock, program); h != nil || err != nil {
			t.Errorf("%s: %+v, %v", why, h, err)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(lock, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantNobody("no file")
	for _, text := range []string{"", "x\n", "1\n", "-3\n", "99999999\n"} {
		write(text)
		wantNobody(text)
	}
	write(fmt.Sprintln(os.Getpid()))
	wantNobody("a number that another process has got")

	f, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	h, err := holderOf(lock, program)
	if err != nil || h == nil || h.pid != os.Getpid() || pidfd.Exited(h.pidfd, 0) {
		t.Fatalf("the holder is %+v, %v", h, err)
	}
	h.close()
	var f2 *failure
	if h, err := holderOf(lock, agentProgram); h != nil || !errors.As(err, &f2) || f2.code != exitUsage || !strings.Contains(err.Error(), program) {
		t.Errorf("another program holds the lock: %+v, %v", h, err)
	}
}

// TestHolderKill: a process that is stopped can be ended, and its end is waited for.
func TestHolderKill(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{program: "sleep", pid: cmd.Process.Pid, pidfd: fd}
	defer h.close()
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := h.kill(); err != nil || !pidfd.Exited(h.pidfd, 0) {
		t.Errorf("kill: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if err := h.kill(); err != nil {
		t.Errorf("kill of a process that is gone: %v", err)
	}
}

// TestEmptyRoster: all files of the list go, and nothing else; ids are told where there
// are any.
func TestEmptyRoster(t *testing.T) {
	dir := t.TempDir()
	if ids, err := emptyRoster(filepath.Join(dir, "nowhere")); err != nil || len(ids) != 0 {
		t.Errorf("no list: %q, %v", ids, err)
	}
	for name, text := range map[string]string{
		"a.json": `{"key":"one@1","state":{"container":{"id":"one"}}}`,
		"b.json": `{"key":"shared/t/1","state":{"shared":"t"}}`,
		"c.json": `{`,
		"other":  "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := emptyRoster(dir); err != nil || fmt.Sprint(ids) != "[one]" {
		t.Errorf("ids %q, %v", ids, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left are %v, %v", left, err)
	}
}
