// Package fault breaks what the agent stands on (scanners, limits, disks, system
// calls, openers) while containers open files, and says what the containers noticed.
//
// It owns the load ([Load]), what a load is judged by ([Report]), and the scanner
// that can be told to misbehave ([Clamd]). It must not own how agents and containers
// are started and cleaned up: that is package harness's.
package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// The kinds of opens that a load makes. Of the last two, every second one is of bad
// content.
const (
	Clean     = "clean"     // one of Load.CleanFiles
	Bad       = "bad"       // one of Load.BadFiles
	Fresh     = "fresh"     // a file that was made anew and renamed to where another was
	Rewritten = "rewritten" // a file that was changed in place, through a descriptor that stays open
	made      = "make"      // making the file for Fresh, by open(O_CREAT)
)

// A Load is processes in one container that open files in a loop and note what
// became of each open, on the host, as it happens:
//
//	run := fault.Load{Processes: 8}.Start(t, suite, suite.Runc(), agent.Gate(""))
//	from := fault.Now()
//	... kill the agent, restart it ...
//	stuck := run.Stuck(t, 10*time.Second)        // who is waiting for longer than that?
//	report := run.Stop(t)                        // waits until all have ended
//	report.Total.BadBytes                        // must be 0, whatever happened
//	run.Report(t, from, fault.Now()).Refused     // opens that began in a stretch of time
//
// The agent under test need not be there after Start. The zero value of each field
// is a default.
type Load struct {
	Processes  int           // 4
	Opens      int           // opens of each process; 0: until Stop
	Pause      time.Duration // between two opens of a process
	Kinds      []string      // in turn; all four
	Content    []byte        // bad content; EICAR
	CleanFiles []string      // the test image's /data/many
	BadFiles   []string      // the test image's EICAR
	Work       string        // directory in the container for Fresh and Rewritten; /tmp
	Held       bool          // begin only with Go, not with Start

	Spec harness.Spec // what else the container is to be; Args, Gate and /mnt are the load's
}

// A Run is a load that was started.
type Run struct {
	Container harness.Container

	load Load
	dir  string // on the host; /mnt in the container

	mu   sync.Mutex
	logs map[int]*log // by the number of the process
}

// startPatience is how long all processes of a load may take until they are ready.
const startPatience = 60 * time.Second

// Start starts the container, waits until each of its processes is ready, and lets
// them begin. The container ends with tb.
func (l Load) Start(tb testing.TB, suite *harness.Suite, engine harness.Engine, gate *harness.Gate) *Run {
	tb.Helper()
	l.fill()
	r := &Run{load: l, dir: suite.HostDirectory(tb, nil), logs: map[int]*log{}}
	spec := l.Spec
	spec.Args, spec.Gate = l.args(), gate
	spec.Binds = append(spec.Binds, harness.Bind{Source: r.dir, Destination: "/mnt"})
	r.Container = engine.Start(tb, spec)
	await(tb, "every process of the load is ready", startPatience, func() error {
		if n := len(r.read(tb)); n < l.Processes {
			return fmt.Errorf("%d of %d are", n, l.Processes)
		}
		return nil
	})
	if !l.Held {
		r.Go(tb)
	}
	return r
}

func (l *Load) fill() {
	if l.Processes == 0 {
		l.Processes = 4
	}
	if len(l.Kinds) == 0 {
		l.Kinds = []string{Clean, Bad, Fresh, Rewritten}
	}
	if l.Content == nil {
		l.Content = harness.EICAR()
	}
	if len(l.CleanFiles) == 0 {
		for i := range 16 {
			l.CleanFiles = append(l.CleanFiles, fmt.Sprintf("/data/many/%02d", i))
		}
	}
	if len(l.BadFiles) == 0 {
		l.BadFiles = []string{harness.BadFile}
	}
	if l.Work == "" {
		l.Work = "/tmp"
	}
}

func (l *Load) args() []string {
	half := len(l.Content) / 2
	return []string{
		"guest", "load", "-processes", strconv.Itoa(l.Processes), "-opens", strconv.Itoa(l.Opens),
		"-pause", l.Pause.String(), "-work", l.Work, "-kinds", strings.Join(l.Kinds, ","),
		"-clean", strings.Join(l.CleanFiles, ","), "-bad", strings.Join(l.BadFiles, ","),
		"-first", string(l.Content[:half]), "-second", string(l.Content[half:]),
	}
}

// Now returns nanoseconds of CLOCK_MONOTONIC, the clock of every time in a log.
func Now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // no Linux is without it
	}
	return t.Nano()
}

// Go lets the processes of a load that was held begin.
func (r *Run) Go(tb testing.TB) { tb.Helper(); r.tell(tb, "go") }

// tell makes a file that the processes look for, without opening it.
func (r *Run) tell(tb testing.TB, name string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), nil, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// Ask tells the processes to end after the open that they are in. It does not wait.
func (r *Run) Ask(tb testing.TB) { tb.Helper(); r.tell(tb, "stop") }

// Stop tells the processes to end, waits until they have, removes the container and
// returns what became of all opens. Whoever hangs fails tb.
func (r *Run) Stop(tb testing.TB) Report {
	tb.Helper()
	r.Ask(tb)
	return r.Wait(tb)
}

// Wait is Stop for a load that ends by itself: its Opens are not 0.
func (r *Run) Wait(tb testing.TB) Report {
	tb.Helper()
	init := r.Container.PID(tb)
	await(tb, "the load ends", 2*startPatience, func() error {
		if state := processState(init); state != "" && state != "Z" {
			return fmt.Errorf("it does not; waiting openers: %+v", r.Stuck(tb, 0))
		}
		return nil
	})
	report := r.Report(tb, 0, 0)
	r.Container.Remove(tb)
	return report
}

// await polls, since what it waits for happens in other processes, for longer than
// harness.Eventually does.
func await(tb testing.TB, what string, patience time.Duration, done func() error) {
	tb.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-end.C:
			tb.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// processState returns the letter of a process's state, or "" if it is gone.
func processState(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// PIDs returns the host's ids of the load's living processes, by their number.
func (r *Run) PIDs(tb testing.TB) map[int]int {
	tb.Helper()
	inside := map[int]int{} // id in the container -> number
	for number, log := range r.read(tb) {
		inside[log.pid] = number
	}
	pids := map[int]int{}
	for _, pid := range children(r.Container.PID(tb)) {
		if number, ok := inside[innermost(pid)]; ok {
			pids[number] = pid
		}
	}
	return pids
}

// children returns the living children of a process.
func children(pid int) []int {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var found []int
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread that has ended has no children
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil && processState(child) != "Z" {
				found = append(found, child)
			}
		}
	}
	return found
}

// innermost returns a process's id in its own pid namespace, or 0.
func innermost(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // one that is gone has none
	for line := range strings.Lines(string(text)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			id, _ := strconv.Atoi(fields[len(fields)-1])
			return id
		}
	}
	return 0
}
