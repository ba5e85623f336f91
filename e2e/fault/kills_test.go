package fault

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

const (
	// kills is how often the agent is killed or stopped, unless ASSAY_KILLS says.
	kills = 500
	// grace is that of the tenant: past it, a stuck agent is killed by its keeper.
	grace = 2 * time.Second
)

// TestKills: an agent that is killed or stopped at any instant, hundreds of times,
// under a load. Every open ends, nothing bad is read, and every open that was answered
// has its record or is counted.
func TestKills(t *testing.T) {
	rounds := kills
	if n, err := strconv.Atoi(os.Getenv("ASSAY_KILLS")); err == nil {
		rounds = n
	}
	file := filepath.Join(suite.Scratch(t), "events.jsonl")
	agent := suite.StartAgent(t, anyHash(t, "grace: "+grace.String(), `scanAhead: "off"`, "kernelMarks: all")+
		"records: {file: "+file+"}\n")
	// On a tmpfs nothing is remembered, so that each open is a scan, with a record.
	counted := Load{
		Kinds: []string{Fresh, Rewritten}, Work: "/work", Pause: time.Millisecond,
		Spec: harness.Spec{Tmpfs: []string{"/work"}},
	}.Start(t, suite, suite.Runc(), agent.Gate(""))
	// On the root filesystem files are remembered, and marked in the kernel.
	marked := Load{Pause: time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate(""))
	loads := []*Run{counted, marked}

	instants := map[string][]int64{}
	for round := range rounds {
		<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond)
		at := Now()
		how := strike(t, agent, round)
		instants[how] = append(instants[how], at)
		for _, run := range loads {
			if stuck := run.Stuck(t, grace+deadline+margin); len(stuck) > 0 {
				t.Fatalf("round %d: openers hang: %+v", round, stuck)
			}
		}
	}
	var reports []Report
	for _, run := range loads {
		report := run.Stop(t)
		wantGuarded(t, report)
		t.Logf("%v", report)
		for how, at := range instants {
			waits := run.Spanning(t, at)
			t.Logf("agent %s %d times, %d opens under way; from then until their answer: p50 %v, p99 %v, longest %v",
				how, len(at), len(waits), percentile(waits, 0.5), percentile(waits, 0.99), percentile(waits, 1))
		}
		reports = append(reports, report)
	}
	agent.AwaitIdle(t)
	wantAccounted(t, agent, file, reports[0])
}

// strike ends or stops the agent in one way or another, and sees to it that there is
// one again. It says how.
func strike(t *testing.T, agent *harness.Agent, round int) string {
	t.Helper()
	switch dice := rand.IntN(100); {
	case round%100 == 99: // the keeper has to end it
		agent.Stuck(t)
		agent.Again(t)
		return "stuck"
	case dice < 20:
		agent.Signal(t, syscall.SIGSTOP)
		<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
		agent.Signal(t, syscall.SIGCONT)
		return "paused"
	case dice < 25:
		agent.Signal(t, syscall.SIGSTOP)
		<-time.After(time.Duration(rand.IntN(20)) * time.Millisecond)
	case dice < 30:
		agent.Stop(t)
		agent.Again(t)
		return "stopped"
	}
	agent.Kill(t)
	agent.Again(t)
	return "killed"
}

// wantAccounted checks that what the load saw answered is in the record file, or
// counted: as lost with an agent, or as answered without one.
func wantAccounted(t *testing.T, agent *harness.Agent, file string, report Report) {
	t.Helper()
	agent.Stop(t) // and its last records are in the file
	log := agent.Log(t)
	recorded := recordedOpens(t, file, "/work/")
	lost := sumOf(t, log, `records were lost with the last process.* records=(\d+)`)
	without := sumOf(t, log, `took over.* answeredByKeeper=(\d+)`) + sumOf(t, log, `took over.* answeredForAgent=(\d+)`)
	t.Logf("%d opens answered: %d recorded, %d lost with an agent, %d answered without one", report.Total.Opens, recorded, lost, without)
	if recorded+lost+without < report.Total.Opens {
		t.Errorf("%d opens are neither recorded nor counted", report.Total.Opens-recorded-lost-without)
	}
}

// recordedOpens counts the records of opens below a directory. Each line has to be
// whole, and numbered higher than the one before.
func recordedOpens(t *testing.T, file, below string) (opens int) {
	t.Helper()
	var seq uint64
	for _, name := range append(rotated(t, file), file) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			var r harness.Record
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Fatalf("a record is damaged: %q: %v", lines.Text(), err)
			}
			if r.Seq <= seq {
				t.Fatalf("record %d comes after record %d", r.Seq, seq)
			}
			seq = r.Seq
			if r.Reason == "timeout" {
				t.Errorf("a scan that takes no time was not through by the deadline: %s", lines.Text())
			}
			if r.Op == "open" && len(r.Path) > len(below) && r.Path[:len(below)] == below {
				opens++
			}
		}
	}
	return opens
}

// rotated lists the older files of a record file, oldest first.
func rotated(t *testing.T, file string) []string {
	t.Helper()
	names, err := filepath.Glob(file[:len(file)-len(".jsonl")] + "-*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names) // their names have the time in them
	return names
}

// sumOf adds up the numbers in the lines of a log that match.
func sumOf(t *testing.T, log, pattern string) (sum int) {
	t.Helper()
	for _, found := range regexp.MustCompile(pattern).FindAllStringSubmatch(log, -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
