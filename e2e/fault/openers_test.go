package fault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// slowly starts an agent whose clamd answers only when it is let go on, and a load that
// waits for it.
func slowly(t *testing.T, load Load, policy ...string) (agent *harness.Agent, run *Run, resume func()) {
	t.Helper()
	clamd := StartClamd(t, suite)
	// Until the load begins to wait for it, clamd is quick.
	agent = suite.StartAgent(t, harness.ClamdScanner(clamd.Socket)+"tenants:\n"+
		harness.Tenant("default", "{}", "clamav", append(policy, `scanAhead: "off"`)...))
	run = load.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 10*load.Processes)
	waiting := make(chan struct{})
	clamd.Do(Misbehaviour{Before: func() { <-waiting }})
	resumed := false
	resume = func() {
		if !resumed {
			resumed = true
			clamd.Do(Misbehaviour{})
			close(waiting)
		}
	}
	t.Cleanup(resume)
	return agent, run, resume
}

// awaitAllWaiting waits until every living process of a load waits for an answer.
func awaitAllWaiting(t *testing.T, run *Run) {
	t.Helper()
	harness.Eventually(t, "every opener waits", func() error {
		pids := run.PIDs(t)
		if n := len(run.StuckAmong(t, pids, 100*time.Millisecond)); n < len(pids) {
			return fmt.Errorf("%d of %d do", n, len(pids))
		}
		return nil
	})
}

// scanned is a load of which nothing is answered from memory.
func scanned(processes int) Load {
	load := clamLoad(processes)
	load.Kinds = []string{Rewritten, Fresh}
	return load
}

// TestOpenersKilled: openers that are killed while they wait die at once, and the others
// have their answers as if those had never been.
func TestOpenersKilled(t *testing.T) {
	const processes, rounds = 24, 4
	agent, run, resume := slowly(t, scanned(processes), "deadline: 60s")
	for round := range rounds {
		awaitAllWaiting(t, run)
		pids := run.PIDs(t)
		for number, pid := range pids {
			if number%(rounds+1) == round {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		harness.Eventually(t, "the killed die", func() error {
			for number, pid := range pids {
				if state := processState(pid); number%(rounds+1) == round && state != "" && state != "Z" {
					return fmt.Errorf("process %d is in state %s", number, state)
				}
			}
			return nil
		})
	}
	// No kernel tells the agent of their death: it forgets them with the scan, or by the
	// deadline.
	left := len(run.PIDs(t))
	from := Now()
	resume()
	harness.Eventually(t, "the others go on", func() error {
		if n := run.Report(t, from, 0).Total.Opens; n < 10*left {
			return fmt.Errorf("%d opens", n)
		}
		if n := agent.Status(t).Waiting(); n > left {
			return fmt.Errorf("the agent owes %d answers to %d openers", n, left)
		}
		return nil
	})
	report := run.Stop(t)
	wantGuarded(t, report)
	if report.Clean.Refused > 0 {
		t.Errorf("openers paid for others' deaths: %v", report)
	}
	agent.AwaitIdle(t)
}

// freezing returns what freezes and thaws all processes of a container, by whichever
// kind of cgroup this machine has.
func freezing(t *testing.T, c harness.Container) (freeze, thaw func()) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID(t)))
	if err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path, want string) {
		t.Helper()
		harness.Eventually(t, "the freezer has done its work", func() error {
			text, err := os.ReadFile(path)
			if err == nil && !strings.Contains(string(text), want) {
				err = fmt.Errorf("%s says %q, want %q", path, text, want)
			}
			return err
		})
	}
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		if controllers == "freezer" {
			state := filepath.Join("/sys/fs/cgroup/freezer", group, "freezer.state")
			return func() { write(state, "FROZEN"); read(state, "FROZEN") }, func() { write(state, "THAWED"); read(state, "THAWED") }
		}
		if dir := filepath.Join("/sys/fs/cgroup", group); controllers == "" && exists(filepath.Join(dir, "cgroup.freeze")) {
			set, events := filepath.Join(dir, "cgroup.freeze"), filepath.Join(dir, "cgroup.events")
			return func() { write(set, "1"); read(events, "frozen 1") }, func() { write(set, "0"); read(events, "frozen 0") }
		}
	}
	t.Fatalf("no freezer among the cgroups of the container:\n%s", text)
	return nil, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestOpenersFrozen: openers that are frozen while they wait find their answer when they
// are thawed, whether it came before or after that; nobody else waits for them.
func TestOpenersFrozen(t *testing.T) {
	for _, tt := range []struct{ name, deadline string }{{"answered in the ice", "2s"}, {"thawed first", "60s"}} {
		t.Run(tt.name, func(t *testing.T) {
			agent, run, resume := slowly(t, scanned(8), "deadline: "+tt.deadline)
			freeze, thaw := freezing(t, run.Container)
			awaitAllWaiting(t, run)
			freeze()
			if tt.deadline == "2s" {
				harness.Eventually(t, "the deadline answers the frozen", func() error {
					if n := agent.Status(t).Waiting(); n > 0 {
						return fmt.Errorf("%d wait", n)
					}
					return nil
				})
			}
			// Another container does not notice any of it.
			other := Load{Processes: 2, Opens: 50, Kinds: []string{Clean}}
			resume()
			report := other.Start(t, suite, suite.Runc(), agent.Gate("")).Wait(t)
			if report.Clean.Refused > 0 {
				t.Errorf("another container paid for the frozen one: %v", report)
			}
			thaw()
			awaitRecovery(t, agent, run)
			wantGuarded(t, run.Stop(t))
			agent.AwaitIdle(t)
		})
	}
}

// TestTenantsLease: a process that holds a write lease on its own file and does not give
// it up keeps its openers from nothing but that file, and no reader of events waits.
func TestTenantsLease(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t, "deadline: "+deadline.String(), "kernelMarks: all"))
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	const own = "/root/own"
	first, second := harness.EICARHalves()
	script := `printf clean > $0 && touch $0.bad && printf '%s%s' "$1" "$2" > $0.bad`
	if r := c.Exec(t, "sh", "-c", script, own, first, second); r.Code != 0 {
		t.Fatal(r)
	}
	run := Load{Processes: 4, Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 100)
	held := make(chan harness.Result, 1)
	go func() { held <- c.Exec(t, "guest", "write-lease", own) }()
	harness.Eventually(t, "the lease is held", func() error {
		if !heldByGuest(t, "write-lease") {
			return errors.New("no process of that name has one")
		}
		return nil
	})

	from := Now()
	for range 5 {
		start := Now()
		r := c.Exec(t, "guest", "read", own, harness.CleanFile)
		if want := own + ": EPERM\n" + harness.CleanFile + ": 13 bytes\n"; r.Hung || r.Stdout != want {
			t.Errorf("want %q while the tenant holds its lease: %s", want, r)
		}
		if took := time.Duration(Now() - start); took > deadline+margin {
			t.Errorf("the opener waited for %v", took)
		}
	}
	awaitEach(t, run, from, 20)
	report := run.Report(t, from, 0)
	wantGuarded(t, report)
	wantPrompt(t, report)
	if report.Clean.Refused > 0 {
		t.Errorf("other containers paid for the lease: %v", report)
	}
	agent.AwaitRecord(t, "the file that could not be opened", func(r harness.Record) bool {
		return r.Container.ID == c.ID() && r.Decision == "deny" && r.Reason == "open-failed"
	})
	if s := agent.Status(t); !s.Healthy {
		t.Errorf("the agent is not well: %q", s.Problems)
	}

	if r := c.Exec(t, "touch", own+".release"); r.Code != 0 {
		t.Fatal(r)
	}
	if r := <-held; r.Code != 0 {
		t.Fatalf("the tenant's lease: %s", r)
	}
	r := c.Exec(t, "guest", "read", own, own+".bad")
	if want := own + ": 5 bytes\n" + own + ".bad: EPERM\n"; r.Stdout != want {
		t.Errorf("want %q without the lease: %s", want, r)
	}
	run.Stop(t)
	c.Kill(t)
	c.Remove(t)
	agent.AwaitIdle(t)
}

// heldByGuest reports whether a guest program that was told this command has a lease.
func heldByGuest(t *testing.T, command string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[1] == "LEASE" {
			args, _ := os.ReadFile("/proc/" + fields[4] + "/cmdline") // it may have ended
			if strings.Contains(string(args), command) {
				return true
			}
		}
	}
	return false
}

// TestReleaseUnderLoad: a container that is removed in the middle of scans, with more of
// them queued and with marked files, can be unmounted at once (the engine's Remove insists
// on that), and the agent lets go of what it has of it without finishing the scans.
func TestReleaseUnderLoad(t *testing.T) {
	const files = 48
	for _, tt := range []struct {
		engine harness.Engine
		rounds int
	}{{suite.Runc(), 3}, {suite.Podman("runc"), 1}} {
		t.Run(tt.engine.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t, "deadline: 30s"))
			for range tt.rounds {
				load := Load{Processes: 32, Held: true, Kinds: []string{Clean}}
				for i := range files {
					load.CleanFiles = append(load.CleanFiles, fmt.Sprintf("/tmp/big-%d", i))
				}
				run := load.Start(t, suite, tt.engine, agent.Gate(""))
				fill := fmt.Sprintf(`for i in $(seq 0 %d); do truncate -s 256M /tmp/big-$i; done`, files-1)
				if r := run.Container.Exec(t, "sh", "-c", fill); r.Code != 0 {
					t.Fatal(r)
				}
				mark := `for i in 1 2 3 4 5 6 7 8 9; do guest read /data/many/00 /data/many/01 /data/top.txt; done`
				harness.Eventually(t, "files are marked", func() error {
					if r := run.Container.Exec(t, "sh", "-c", mark); r.Code != 0 {
						t.Fatal(r)
					}
					if leases(t, agent) < 3 {
						return fmt.Errorf("%+v", agent.Status(t).Marks)
					}
					return nil
				})
				device := deviceOf(t, run.Container.PID(t))
				run.Go(t)
				harness.Eventually(t, "scans are in flight and queued", func() error {
					s := agent.Status(t)
					if s.Tenants[0].InFlight == 0 || s.Waiting() < 20 {
						return fmt.Errorf("%+v", s.Tenants)
					}
					return nil
				})

				if len(heldOn(t, agent.PID(), device)) == 0 {
					t.Error("the agent is at work on the container, and nothing of it is open")
				}
				run.Container.Remove(t)
				harness.Eventually(t, "the agent lets go of everything", func() error {
					if held, n := heldOn(t, agent.PID(), device), leases(t, agent); len(held) > 0 || n > 0 {
						return fmt.Errorf("it has %q open, and %d leases", held, n)
					}
					return nil
				})
				agent.AwaitIdle(t)
			}
		})
	}
}

// deviceOf returns the device number of a container's root filesystem. It opens nothing.
func deviceOf(t *testing.T, pid int) uint64 {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/root/", pid), &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Dev
}

// heldOn returns what a process has open on a device.
func heldOn(t *testing.T, pid int, device uint64) []string {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, fd := range fds {
		var stat syscall.Stat_t
		if err := syscall.Stat(fd, &stat); err == nil && stat.Dev == device {
			target, _ := os.Readlink(fd) // it may be closed by now
			held = append(held, target)
		}
	}
	slices.Sort(held)
	return held
}
