package fault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// TestFewDescriptors: an agent with few descriptors gives openers that it cannot hold
// the policy's answer, and marks no more files than it can afford.
func TestFewDescriptors(t *testing.T) {
	const descriptors = 96
	clamd := StartClamd(t, suite)
	agent := suite.StartAgentUnder(t, []string{"prlimit", fmt.Sprintf("--nofile=%d", descriptors)}, clamdConfig(clamd.Socket))
	load := clamLoad(descriptors)
	load.Pause = 0
	run := load.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 3*descriptors)

	from := Now()
	clamd.Do(Misbehaviour{Before: func() { <-time.After(50 * time.Millisecond) }})
	awaitEach(t, run, from, 8)
	to := Now()
	clamd.Do(Misbehaviour{})
	if r := run.Report(t, from, to); r.Clean.Refused == 0 {
		t.Errorf("more openers wait than there are descriptors, and none was refused: %v", r)
	}
	report := run.Stop(t)
	wantGuarded(t, report)
	wantPrompt(t, report)
	agent.AwaitIdle(t)
	if s := agent.Status(t); s.Reason("default", "overload") == 0 {
		t.Errorf("no answer for overload: %+v", s.Tenants)
	}
	wantReads(t, agent)
}

// wantPrompt fails t if somebody waited for longer than the deadline allows.
func wantPrompt(t *testing.T, report Report) {
	t.Helper()
	if report.Longest > deadline+margin {
		t.Errorf("an opener waited for %v, with a deadline of %v", report.Longest, deadline)
	}
}

// wantReads fails t unless a new container reads what is clean, and only that.
func wantReads(t *testing.T, agent *harness.Agent) {
	t.Helper()
	files := []string{harness.CleanFile, harness.TopFile}
	r := suite.Runc().Run(t, harness.Spec{Args: append([]string{"guest", "read"}, files...), Gate: agent.Gate("")})
	if want := harness.CleanFile + ": 13 bytes\n" + harness.TopFile + ": 18 bytes\n"; r.Code != 0 || r.Stdout != want {
		t.Errorf("want both clean files: %s", r)
	}
}

// TestDescriptorsExhausted: the kernel cannot open an event's file for an agent without
// a descriptor left. It refuses that opener, and the agent goes on.
func TestDescriptorsExhausted(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	run := Load{Processes: 6, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 120)

	var before unix.Rlimit
	limit := func(soft uint64) {
		if err := unix.Prlimit(agent.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: before.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Prlimit(agent.PID(), unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	from := Now()
	limit(8) // far below what it has open: every new one fails
	awaitEach(t, run, from, 12)
	to := Now()
	limit(before.Cur)

	r := run.Report(t, from, to)
	if r.Clean.Refused == 0 {
		t.Errorf("events had no descriptors, and nobody was refused: %v", r)
	}
	awaitRecovery(t, agent, run)
	report := run.Stop(t)
	wantGuarded(t, report)
	wantPrompt(t, report)
	agent.AwaitIdle(t)
}

// TestMemoryLimit: an agent in a cgroup with little memory does its work within it.
func TestMemoryLimit(t *testing.T) {
	const limit = 32 << 20
	const root = "/sys/fs/cgroup/memory"
	if _, err := os.Stat(filepath.Join(root, "memory.limit_in_bytes")); err != nil {
		harness.Require(t, "a memory controller of cgroup v1", err)
	}
	cgroup := filepath.Join(root, "assay-fault-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		harness.Eventually(t, "the agent's cgroup is empty", func() error { return os.Remove(cgroup) })
	})
	if err := os.WriteFile(filepath.Join(cgroup, "memory.limit_in_bytes"), []byte(strconv.Itoa(limit)), 0); err != nil {
		t.Fatal(err)
	}
	enter := []string{"sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, cgroup}
	agent := suite.StartAgentUnder(t, enter, "cache: {memory: 4MiB, disk: 4MiB}\n"+anyHash(t))
	run := Load{Processes: 64}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 10000)
	report := run.Stop(t)
	wantGuarded(t, report)
	wantPrompt(t, report)
	agent.AwaitIdle(t)
	wantReads(t, agent)
	t.Logf("of %d MiB, the agent's cgroup had %s at most", limit>>20, memoryOf(t, cgroup))
}

func memoryOf(t *testing.T, cgroup string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroup, "memory.max_usage_in_bytes"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// setSysctl changes a knob of the kernel until t ends.
func setSysctl(t *testing.T, knob, value string) (restore func()) {
	t.Helper()
	before, err := os.ReadFile(knob)
	if err != nil {
		t.Fatal(err)
	}
	restore = func() {
		if err := os.WriteFile(knob, before, 0); err != nil {
			t.Errorf("%s is not what it was: %v", knob, err)
		}
	}
	t.Cleanup(restore)
	if err := os.WriteFile(knob, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	return restore
}

// TestGroupLimit: where the kernel allows no more fanotify groups, containers share
// their tenant's, and are guarded as well as the one that has its own.
func TestGroupLimit(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	load := Load{Processes: 3, Pause: time.Millisecond}
	runs := []*Run{load.Start(t, suite, suite.Runc(), agent.Gate(""))}
	restore := setSysctl(t, "/proc/sys/fs/fanotify/max_user_groups", "1")
	for range 2 {
		runs = append(runs, load.Start(t, suite, suite.Runc(), agent.Gate("")))
	}
	restore()
	if !strings.Contains(agent.Log(t), "shares one with its tenant") {
		t.Error("the agent does not say that containers share a group")
	}
	from := Now()
	for _, run := range runs {
		awaitEach(t, run, from, 20)
	}
	// One that ends takes the others' marks with it no more than their answers.
	wantGuarded(t, runs[1].Stop(t))
	from = Now()
	for _, run := range []*Run{runs[0], runs[2]} {
		awaitEach(t, run, from, 20)
		report := run.Stop(t)
		wantGuarded(t, report)
		wantPrompt(t, report)
		if report.Clean.Refused > 0 {
			t.Errorf("clean files were refused: %v", report)
		}
	}
	agent.AwaitIdle(t)
}

// TestManyMarkedFiles: of many files that are opened again and again the kernel marks as
// many as the agent has descriptors for leases, and the others are answered as before.
func TestManyMarkedFiles(t *testing.T) {
	const descriptors, files = 128, 300
	agent := suite.StartAgentUnder(t, []string{"prlimit", fmt.Sprintf("--nofile=%d", descriptors)}, anyHash(t, "kernelMarks: all"))
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	fill := `mkdir /data/own && for i in $(seq ` + strconv.Itoa(files) + `); do printf 'file %03d\n' $i > /data/own/$i; done`
	if r := c.Exec(t, "sh", "-c", fill); r.Code != 0 {
		t.Fatal(r)
	}
	read := `cd /data/own && for i in 1 2 3 4 5; do guest read * > /dev/null || echo refused; done`
	harness.Eventually(t, "files are marked", func() error {
		if r := c.Exec(t, "sh", "-c", read); r.Code != 0 || r.Stdout != "" {
			t.Fatalf("want every file read: %s, denied:\n%s", r, agent.CLI(t, "events", "--decision", "deny"))
		}
		s := agent.Status(t)
		if s.Marks.Now == 0 || s.Marks.Skipped["budget"] == 0 && s.Marks.Placed <= descriptors/4 {
			return fmt.Errorf("%+v", s.Marks)
		}
		return nil
	})
	if s := agent.Status(t); s.Marks.Now > descriptors/4 {
		t.Errorf("%d files are marked, with %d descriptors", s.Marks.Now, descriptors)
	}
	if n := leases(t, agent); n > descriptors/4 {
		t.Errorf("the kernel knows of %d leases, with %d descriptors", n, descriptors)
	}
	// A marked file is gated as ever once it is written to.
	first, second := harness.EICARHalves()
	bad := `cd /data/own && for i in $(seq 20); do printf '%s%s' "$1" "$2" > $i; guest read $i; done; true`
	if r := c.Exec(t, "sh", "-c", bad, "sh", first, second); strings.Count(r.Stdout, ": EPERM\n") != 20 {
		t.Errorf("want 20 refusals: %s", r)
	}
	c.Kill(t)
	c.Remove(t)
	agent.AwaitIdle(t)
	harness.Eventually(t, "leases go with the container", func() error {
		if n := leases(t, agent); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// TestNoLeases: where the kernel grants no leases nothing is marked, and everything is
// guarded.
func TestNoLeases(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	restore := setSysctl(t, "/proc/sys/fs/leases-enable", "0")
	run := Load{Processes: 3, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 300)
	report := run.Stop(t)
	restore()
	wantGuarded(t, report)
	if report.Clean.Refused > 0 {
		t.Errorf("clean files were refused: %v", report)
	}
	if s := agent.Status(t); s.Marks.Placed > 0 || s.Marks.Skipped["failed"] == 0 {
		t.Errorf("want every mark to fail: %+v", s.Marks)
	}
}

// TestRecordsFull: records that have no room on the disk delay nobody; they are written
// when there is room again, as far as they are still in memory, or else counted as lost.
// A state directory without room is TestStateFull's (package e2e), a read-only one
// TestStateReadOnly's.
func TestRecordsFull(t *testing.T) {
	dir := suite.HostDirectory(t, nil)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	file := filepath.Join(dir, "events.jsonl")
	agent := suite.StartAgent(t, "records: {file: "+file+"}\n"+anyHash(t))
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk could not be filled: %v", err)
	}
	run := Load{Processes: 6}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 2000)
	harness.Eventually(t, "the agent says that records cannot be written", func() error {
		if s := agent.Status(t); s.Healthy || s.Records.Error == "" {
			return fmt.Errorf("problems %q, records %+v", s.Problems, s.Records)
		}
		return nil
	})
	report := run.Stop(t)
	wantGuarded(t, report)
	wantPrompt(t, report)
	if report.Clean.Refused > 0 {
		t.Errorf("a full disk cost clean openers something: %v", report)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "records are written again", func() error {
		if s := agent.Status(t); !s.Healthy || s.Records.Written == 0 {
			return fmt.Errorf("problems %q, records %+v", s.Problems, s.Records)
		}
		return nil
	})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"malicious"`)) {
		t.Errorf("none of %d bytes of records is of what was refused", len(text))
	}
	agent.AwaitIdle(t)
}
