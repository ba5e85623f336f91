package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// patience bounds every wait of these tests for something that must come.
const patience = 10 * time.Second

// needle makes a file malicious for [newContains].
const needle = "malware"

// rig is a guard on real readers, with its records.
type rig struct {
	*Guard
	readers *fanotify.Readers
	log     *audit.Log
	sub     *audit.Subscription
}

// newRig starts a guard whose every scanner is s. It ends with the test, and
// then nothing of it may be left.
func newRig(t *testing.T, s scanner.Scanner, cfg *tenant.Config, options ...func(*Options)) *rig {
	t.Helper()
	readers, err := fanotify.Start(fanotify.DefaultReaders())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	log, err := audit.NewLog(audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Readers: readers, Records: log}
	for _, set := range options {
		set(&o)
	}
	r := &rig{Guard: New(o, cfg, named(cfg, s)), readers: readers, log: log, sub: log.Subscribe(0)}
	t.Cleanup(r.sub.Close)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.Close(ctx)
		if n := r.held.n.Load(); n != 0 {
			t.Errorf("%d events are held after Close", n)
		}
	})
	return r
}

// named gives every scanner of cfg's the same implementation.
func named(cfg *tenant.Config, s scanner.Scanner) map[string]scanner.Named {
	all := map[string]scanner.Named{}
	for _, c := range cfg.Scanners {
		all[c.Name] = scanner.Named{Name: c.Name, Scanner: s}
	}
	return all
}

// config is the built-in configuration with its tenant changed.
func config(changes ...func(*tenant.Tenant)) *tenant.Config {
	cfg := tenant.Default()
	for _, change := range changes {
		change(&cfg.Tenants[0])
	}
	return cfg
}

// withTenant adds a tenant for a namespace before the last resort.
func withTenant(cfg *tenant.Config, name, namespace string, changes ...func(*tenant.Tenant)) *tenant.Config {
	next := config(changes...).Tenants[0]
	next.Name, next.Match = name, tenant.Match{Namespaces: []string{namespace}}
	cfg.Tenants = append([]tenant.Tenant{next}, cfg.Tenants...)
	return cfg
}

func newContains() *scannertest.Fake {
	return scannertest.NewFake("1", scannertest.Contains(needle, "Test.Malware"))
}

// announced announces c and returns the reply.
func (r *rig) announced(t *testing.T, c *kerneltest.Container, changes ...func(*announce.Container)) announce.Guarded {
	t.Helper()
	g, err := r.announce(t, announcement(c, changes...))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// announce is Announce in time.
func (r *rig) announce(t *testing.T, a announce.Container) (announce.Guarded, error) {
	t.Helper()
	type reply struct {
		announce.Guarded
		error
	}
	replies := make(chan reply, 1)
	go func() {
		g, err := r.Announce(t.Context(), a)
		replies <- reply{g, err}
	}()
	got := receive(t, "the reply to an announcement", replies)
	return got.Guarded, got.error
}

func announcement(c *kerneltest.Container, changes ...func(*announce.Container)) announce.Container {
	a := announce.Container{ID: fmt.Sprint("c", c.PID), PID: c.PID, Rootfs: c.Merged}
	for _, change := range changes {
		change(&a)
	}
	return a
}

// container returns the guarded container of an announcement.
func (r *rig) container(t *testing.T, id string) *container {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[id]; c != nil {
		return c
	}
	t.Fatalf("container %s is not guarded", id)
	return nil
}

// next returns the next record.
func (r *rig) next(t *testing.T) audit.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rec, lost, err := r.sub.Next(ctx)
	if err != nil || lost != 0 {
		t.Fatalf("the next record: %v, %d lost", err, lost)
	}
	return rec
}

// noRecord fails if there is a record that nobody asked for.
func (r *rig) noRecord(t *testing.T) {
	t.Helper()
	if n := r.sub.Behind(); n != 0 {
		t.Errorf("%d more records, the first is %+v", n, r.next(t))
	}
}

// An opener is a process that reads files. It is not the test's own, whose opens
// the guard takes for the agent's.
type opener struct {
	cmd  *exec.Cmd
	out  strings.Builder
	done chan error
}

// open starts an opener of paths.
func open(t *testing.T, paths ...string) *opener {
	t.Helper()
	return begin(t, exec.CommandContext(t.Context(), "cat", paths...))
}

// begin starts an opener that is any command.
func begin(t *testing.T, cmd *exec.Cmd) *opener {
	t.Helper()
	o := &opener{cmd: cmd, done: make(chan error, 1)}
	cmd.WaitDelay = patience
	cmd.Stdout, cmd.Stderr = &o.out, &o.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { o.done <- cmd.Wait() }()
	return o
}

// waits returns once the kernel holds the opener until it is answered.
func (o *opener) waits(t *testing.T) {
	t.Helper()
	eventually(t, "the opener waits for an answer", func() bool {
		where, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", o.cmd.Process.Pid))
		return err == nil && strings.HasPrefix(string(where), "fanotify")
	})
}

// result returns what the opener printed and whether it succeeded.
func (o *opener) result(t *testing.T) (string, bool) {
	t.Helper()
	select {
	case err := <-o.done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return o.out.String(), err == nil
	case <-time.After(patience):
		_ = o.cmd.Process.Kill()
		t.Fatal("an opener hangs")
		return "", false
	}
}

// wantContent and wantDenied say how an opener ended.
func (o *opener) wantContent(t *testing.T, want string) {
	t.Helper()
	if got, ok := o.result(t); !ok || got != want {
		t.Errorf("the opener got %q, %v, want %q", got, ok, want)
	}
}

func (o *opener) wantDenied(t *testing.T) {
	t.Helper()
	if got, ok := o.result(t); ok || !strings.Contains(got, unix.EPERM.Error()) && !strings.Contains(got, "Operation not permitted") {
		t.Errorf("the opener got %q, %v, want EPERM", got, ok)
	}
}

// eventually waits until ok, looking again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			stacks := make([]byte, 1<<20)
			t.Fatalf("never: %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// descriptorsBelow lists the process's descriptors of files below dir.
func descriptorsBelow(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if name, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && within(name, dir) {
			found = append(found, name)
		}
	}
	return found
}

// stubborn is a scanner that ignores its context: its scans end when release is
// called, with verdict.
type stubborn struct {
	*scannertest.Fake
	started chan struct{} // one for each scan that began
	release func()
}

func newStubborn(t *testing.T, verdict func() scanner.Verdict) *stubborn {
	t.Helper()
	over, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	s := &stubborn{started: make(chan struct{}, 1024), release: end}
	s.Fake = scannertest.NewFake("1", func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict {
		s.started <- struct{}{}
		<-over.Done()
		return verdict()
	})
	return s
}

// began waits for a scan to begin.
func (s *stubborn) began(t *testing.T) {
	t.Helper()
	receive(t, "a scan to begin", s.started)
}

// receive takes a value from c in time.
func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		var zero T
		t.Fatalf("waited in vain for %s", what)
		return zero
	}
}

// shell is a script to be run outside of all containers.
func shell(t *testing.T, script string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "sh", append([]string{"-e", "-c", script}, args...)...)
}
