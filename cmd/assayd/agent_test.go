package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// newAgent wires an agent without a socket on a configuration file.
func newAgent(t *testing.T, config string) *agent {
	t.Helper()
	path := file(t, config)
	cfg, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	a := &agent{options: options{file: path, config: cfg, readers: 1, log: log}, started: time.Now()}
	if a.scanners, err = scanners.Build(cfg.Scanners, log); err != nil {
		t.Fatal(err)
	}
	if a.records, err = audit.NewLog(audit.Options{}); err != nil {
		t.Fatal(err)
	}
	if a.readers, err = fanotify.Start(1); err != nil {
		t.Fatal(err)
	}
	forgetful := *cfg // nothing is written where the host's agent would
	forgetful.Cache.Disk = 0
	if a.memory, err = openMemory(t.Context(), &forgetful, 100, 1, log); err != nil {
		t.Fatal(err)
	}
	a.guard = guard.New(guard.Options{Readers: a.readers, Records: a.records, Logger: log, Memory: &a.memory.Memory}, cfg, a.scanners)
	a.keeper = newLink(&tenant.Config{Socket: path, Keeper: tenant.Keeper{Backend: tenant.KeeperOff}}, 1024, log)
	a.watch = &watchdog{readers: a.readers, log: log}
	t.Cleanup(func() {
		a.unguard(context.WithoutCancel(t.Context()))
		a.closeMemory(context.WithoutCancel(t.Context()))
		a.readers.Stop()
		a.closeRecords(context.WithoutCancel(t.Context()))
		a.closeScanners()
	})
	return a
}

const twoScanners = `
scanners:
- {name: one, hashlist: {files: [/nowhere/one*.hsb]}}
- {name: two, hashlist: {files: [/nowhere/two*.hsb]}}
`

// TestReloadChangesNothing: whatever is wrong with the new file, everything stays
// as it was, and the status says why.
func TestReloadChangesNothing(t *testing.T) {
	for name, tc := range map[string]struct{ content, says string }{
		"not YAML":          {"\t{", ":1"},
		"unknown key":       {twoScanners + "tenant: []\n", "tenant"},
		"unknown scanner":   {twoScanners + "tenants:\n- {name: a, match: {}, stages: [{scanners: [three]}]}\n", "three"},
		"another socket":    {twoScanners + "socket: /run/other.sock\n", "socket, keeper cannot change"},
		"another state":     {twoScanners + "state: /run/other\n", "state cannot change"},
		"another log":       {twoScanners + "records: {file: /run/other.jsonl}\n", "records cannot change"},
		"scanner not built": {twoScanners + "- {name: three, hashlist: {files: [/nowhere/three.hsb]}}\n", "three"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, twoScanners)
			config, before := a.configuration(), maps.Clone(a.scanners)
			write(t, a.file, tc.content)
			a.reload()
			if a.configuration() != config || !maps.Equal(a.scanners, before) {
				t.Error("something changed")
			}
			s := a.Status(t.Context())
			if s.Healthy || !strings.Contains(s.ReloadErr, tc.says) || !strings.Contains(strings.Join(s.Problems, "\n"), tc.says) {
				t.Errorf("the status says %q and %q, want %q", s.ReloadErr, s.Problems, tc.says)
			}
			if s.ConfigHash != config.Hash() {
				t.Error("the status has the hash of another configuration")
			}
			for _, sc := range before {
				if sc.Generation() == "" {
					t.Errorf("scanner %s was closed", sc.Name)
				}
			}
			write(t, a.file, twoScanners)
			a.reload()
			if s := a.Status(t.Context()); s.ReloadErr != "" {
				t.Errorf("after a good file the status still says %q", s.ReloadErr)
			}
		})
	}
}

func TestReloadFileGone(t *testing.T) {
	a := newAgent(t, twoScanners)
	if err := os.Remove(a.file); err != nil {
		t.Fatal(err)
	}
	a.reload()
	if s := a.Status(t.Context()); s.ReloadErr == "" || s.Healthy || len(s.Scanners) != 2 {
		t.Errorf("the status is %+v", s)
	}
}

// TestReloadKeepsScanners: a scanner whose configuration did not change goes on;
// the others are built anew, and closed when they are not needed any more.
func TestReloadKeepsScanners(t *testing.T) {
	a := newAgent(t, twoScanners)
	before := maps.Clone(a.scanners)
	write(t, a.file, `
scanners:
- {name: three, hashlist: {files: []}}
- {name: two, hashlist: {files: [/nowhere/else*.hsb]}}
- {name: one, hashlist: {files: [/nowhere/one*.hsb]}}
`)
	a.reload()
	if a.reloadErr != nil {
		t.Fatal(a.reloadErr)
	}
	a.draining.Wait()
	if got := slices.Sorted(maps.Keys(a.scanners)); fmt.Sprint(got) != "[one three two]" {
		t.Errorf("the scanners are %v", got)
	}
	if a.scanners["one"] != before["one"] || a.scanners["two"].Scanner == before["two"].Scanner {
		t.Error("what did not change was replaced, or what changed was kept")
	}
	f := scannertest.FileOf(t, []byte("content"))
	if v := before["one"].Scan(t.Context(), f); v.Outcome != scanner.Clean {
		t.Errorf("the kept scanner says %+v", v)
	}
	if v := before["two"].Scan(t.Context(), f); v.Outcome != scanner.Error {
		t.Errorf("the replaced scanner was not closed: %+v", v)
	}
}

// TestSplit tells scanners that go on from those to build.
func TestSplit(t *testing.T) {
	one := tenant.Scanner{Name: "one", Hashlist: &tenant.Hashlist{Files: []string{"/a"}}}
	other := tenant.Scanner{Name: "one", Hashlist: &tenant.Hashlist{Files: []string{"/b"}}}
	clamd := tenant.Scanner{Name: "one", Clamd: &tenant.Clamd{Address: "unix:/a", Connections: 4}}
	copied := tenant.Scanner{Name: "one", Hashlist: &tenant.Hashlist{Files: []string{"/a"}}}
	renamed := tenant.Scanner{Name: "two", Hashlist: one.Hashlist}
	running := scanner.Named{Name: "one", Scanner: scannertest.NewFake("1", scannertest.Hang(nil))}
	a := &agent{scanners: map[string]scanner.Named{"one": running}}
	for name, tc := range map[string]struct {
		next tenant.Scanner
		kept bool
	}{"the same": {copied, true}, "other files": {other, false}, "another driver": {clamd, false}, "another name": {renamed, false}} {
		kept, wanted := a.split(&tenant.Config{Scanners: []tenant.Scanner{one}}, &tenant.Config{Scanners: []tenant.Scanner{tc.next}})
		if (len(kept) == 1) != tc.kept || (len(wanted) == 1) == tc.kept || tc.kept && kept["one"] != running {
			t.Errorf("%s: kept %v, wanted %v", name, kept, wanted)
		}
	}
}

// TestStatusProblems: each thing that is wrong makes the agent unhealthy, and is
// said.
func TestStatusProblems(t *testing.T) {
	a := newAgent(t, "{}")
	if s := a.Status(t.Context()); !s.Healthy || len(s.Problems) != 0 || s.PID != os.Getpid() || s.Readers != 1 || s.Goroutines < 2 || len(s.Tenants) != 1 {
		t.Fatalf("a new agent: %+v", s)
	}
	ill := scannertest.NewFake("7", scannertest.Hang(nil))
	ill.SetHealth(errors.New("the database is from last year"))
	name := a.config.Scanners[0].Name
	for problem, set := range map[string]func() (undo func()){
		"scanner " + name + ": the database is from last year": func() func() {
			well := a.scanners
			a.scanners = map[string]scanner.Named{name: {Name: name, Scanner: ill}}
			return func() { a.scanners = well }
		},
		"is not the one in force: broken": func() func() {
			a.reloadErr = errors.New("broken")
			return func() { a.reloadErr = nil }
		},
		"1 of 1 event readers make no progress": func() func() {
			a.watch.stuck.Store(1)
			return func() { a.watch.stuck.Store(0) }
		},
	} {
		undo := set()
		if s := a.Status(t.Context()); s.Healthy || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], problem) {
			t.Errorf("%s: the status is %v, %q", problem, s.Healthy, s.Problems)
		}
		undo()
	}
}

func TestCheck(t *testing.T) {
	a := newAgent(t, "{}")
	for content, want := range map[string]string{"content": "allow", string(scannertest.EICAR()): "deny"} {
		f := scannertest.FileOf(t, []byte(content))
		if got, err := a.Check(t.Context(), f.FD, "", "file"); err != nil || got.Decision != want || got.Path != "file" || got.Size != f.Size {
			t.Errorf("%.10s: %+v, %v", content, got, err)
		}
	}
	f := scannertest.FileOf(t, nil)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, check := range map[string]func() (api.CheckResult, error){
		"unknown tenant": func() (api.CheckResult, error) { return a.Check(t.Context(), f.FD, "nobody", "") },
		"a device":       func() (api.CheckResult, error) { return a.Check(t.Context(), int(null.Fd()), "", "") },
	} {
		_, err := check()
		var refused *announce.Refusal
		var status interface{ HTTPStatus() int }
		if !errors.As(err, &refused) || refused.Remedy == "" || !errors.As(err, &status) || status.HTTPStatus() != 422 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Check(t.Context(), -1, "", ""); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}

// TestKernelWatchdog: a reader that is still at the same event at the second look
// is stuck; once it goes on, it is not.
func TestKernelWatchdog(t *testing.T) {
	readers, err := fanotify.Start(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(group.Close)
	entered, proceed := make(chan struct{}, 1), make(chan struct{})
	if err := readers.Add(group, handlerFunc(func(ev *fanotify.Event) {
		entered <- struct{}{}
		<-proceed
		ev.Answer(fanotify.Allow)
	}), func(int, error) {}); err != nil {
		t.Fatal(err)
	}
	dirfd, err := unix.Open(o.Merged, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	if err := group.MarkSuperblock(dirfd, fanotify.OpOpen, o.Merged); err != nil {
		t.Fatal(err)
	}
	w := &watchdog{readers: readers, log: slog.New(slog.DiscardHandler)}
	looks := func(fine bool, stuck int64) {
		t.Helper()
		if got := w.look(); got != fine || w.stuck.Load() != stuck {
			t.Errorf("fine: %v with %d stuck, want %v with %d", got, w.stuck.Load(), fine, stuck)
		}
	}
	looks(true, 0)
	looks(true, 0) // idle twice is not stuck
	opener := exec.CommandContext(t.Context(), "cat", o.Path("file"))
	if err := opener.Start(); err != nil {
		t.Fatal(err)
	}
	<-entered
	looks(true, 0) // it has only begun
	looks(false, 1)
	looks(false, 1)
	close(proceed)
	if err := opener.Wait(); err != nil {
		t.Error(err)
	}
	for readers.Turns()[0]%2 == 1 && t.Context().Err() == nil {
		runtime.Gosched() // the opener has its answer before the reader is through
	}
	looks(true, 0)
}

type handlerFunc func(*fanotify.Event)

func (f handlerFunc) HandleEvent(ev *fanotify.Event) { f(ev) }

// TestKernelServe starts the agent on a socket, reloads it by signal and stops it
// with a container that it guards.
func TestKernelServe(t *testing.T) {
	keepKnobs(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	common := "socket: " + socket + "\nstate: " + t.TempDir() + "\nkeeper: {backend: \"off\"}\n"
	path := file(t, common)
	cfg, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, options{file: path, config: cfg, readers: 2, log: slog.New(slog.DiscardHandler)})
	}()
	client := api.NewClient(socket)
	statusUntil(t, client, ended, func(s api.Status) bool { return s.Healthy && len(s.Tenants) == 1 })
	c := kerneltest.NewContainer(t, map[string]string{"bad": string(scannertest.EICAR())}, "")
	if _, err := client.Announce(t.Context(), announce.Container{ID: "one", PID: c.PID, Rootfs: c.Merged}); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Shell(t, "cat bad"); err == nil {
		t.Errorf("a guarded container read %q", out)
	}
	for _, next := range []struct {
		content string
		want    func(api.Status) bool
	}{
		{"mode: [\n", func(s api.Status) bool { return s.ReloadErr != "" && len(s.Tenants) == 1 }},
		{"tenants: [{name: a, match: {namespaces: [a]}}]\n", func(s api.Status) bool {
			return s.ReloadErr == "" && len(s.Tenants) == 2 && len(s.Containers) == 1
		}},
	} {
		write(t, path, common+next.content)
		if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		statusUntil(t, client, ended, next.want)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if out, err := c.Shell(t, "cat bad"); err != nil || out != string(scannertest.EICAR()) {
		t.Errorf("after the agent's end: %q, %v", out, err)
	}
	if _, err := client.Status(t.Context()); err == nil {
		t.Error("the socket still answers")
	}
}

// statusUntil asks for the status until it is as wanted.
func statusUntil(t *testing.T, client *api.Client, ended <-chan error, wanted func(api.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := client.Status(ctx)
		if err == nil && wanted(s) {
			return
		}
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("the agent ended: %v", err)
		case <-ctx.Done():
			stacks := make([]byte, 1<<20)
			t.Fatalf("the status never became what it should: %+v, %v\n%s", s, err, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestKernelServeFails(t *testing.T) {
	keepKnobs(t)
	blocked := file(t, "{}")
	var said strings.Builder
	code := run([]string{"assayd", "--config", file(t, "socket: "+blocked+"/agent.sock\nstate: "+t.TempDir()+"\n")}, &said)
	if code != exitFailed || !strings.Contains(said.String(), blocked) {
		t.Errorf("exit code %d:\n%s", code, said.String())
	}
}
