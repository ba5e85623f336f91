package fault

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Count is what became of opens.
type Count struct {
	Opens    int // that have ended, well or not
	Read     int // let through
	Refused  int // EPERM
	BadBytes int // read of something with bad content in it
	Other    map[unix.Errno]int
}

// A Report is what the processes of a load experienced.
type Report struct {
	Total   Count
	Clean   Count // of what was clean: Refused is what an innocent opener paid
	Bad     Count // of what was bad: Read and BadBytes must be 0
	Longest time.Duration

	durations []time.Duration // sorted
}

// Percentile returns how long an open took at most, of this share (0 to 1) of all.
func (r Report) Percentile(share float64) time.Duration { return percentile(r.durations, share) }

func percentile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// Spanning returns, for each open that was under way at one of the instants, how long
// it was from then until its end, shortest first.
func (r *Run) Spanning(tb testing.TB, instants []int64) []time.Duration {
	tb.Helper()
	var waits []time.Duration
	for _, log := range r.read(tb) {
		for _, o := range log.opens {
			i, _ := slices.BinarySearch(instants, o.start)
			if i < len(instants) && instants[i] < o.end {
				waits = append(waits, time.Duration(o.end-instants[i]))
			}
		}
	}
	slices.Sort(waits)
	return waits
}

func (r Report) String() string {
	return fmt.Sprintf("clean %+v, bad %+v, p50 %v, p99 %v, longest %v", r.Clean, r.Bad, r.Percentile(0.5), r.Percentile(0.99), r.Longest)
}

// A Waiting is an open that has not ended.
type Waiting struct {
	Number int // of the process in its load
	Kind   string
	For    time.Duration
}

// A log is what one process has written.
type log struct {
	pid     int // in the container; 0: it is not ready
	opens   []open
	kind    string // of the open under way
	pending int64  // when that began; 0: there is none
	offset  int64  // in the file, of what was not yet read
}

type open struct {
	kind       string
	start, end int64
	bad        bool // its content
	errno      unix.Errno
	badBytes   int
}

// Report returns what became of the opens that began at from or later and before to,
// both as of [Now]. A to of 0 is the end of time.
func (r *Run) Report(tb testing.TB, from, to int64) Report {
	tb.Helper()
	if to == 0 {
		to = math.MaxInt64
	}
	var report Report
	for _, log := range r.read(tb) {
		for _, o := range log.opens {
			if o.start >= from && o.start < to {
				report.add(o)
			}
		}
	}
	slices.Sort(report.durations)
	if n := len(report.durations); n > 0 {
		report.Longest = report.durations[n-1]
	}
	return report
}

func (r *Report) add(o open) {
	r.durations = append(r.durations, time.Duration(o.end-o.start))
	r.Total.add(o)
	if o.bad {
		r.Bad.add(o)
	} else {
		r.Clean.add(o)
	}
}

func (c *Count) add(o open) {
	c.Opens++
	c.BadBytes += o.badBytes
	switch o.errno {
	case 0:
		c.Read++
	case unix.EPERM:
		c.Refused++
	default:
		if c.Other == nil {
			c.Other = map[unix.Errno]int{}
		}
		c.Other[o.errno]++
	}
}

// Stuck returns the living processes that have been waiting in an open for longer
// than limit.
func (r *Run) Stuck(tb testing.TB, limit time.Duration) []Waiting {
	tb.Helper()
	return r.StuckAmong(tb, r.PIDs(tb), limit)
}

// StuckAmong is Stuck for processes known by an earlier PIDs, of which those that
// have ended since do not count: it asks no runtime, so it can be called often.
func (r *Run) StuckAmong(tb testing.TB, pids map[int]int, limit time.Duration) []Waiting {
	tb.Helper()
	var stuck []Waiting
	logs, at := r.read(tb), Now()
	for number, log := range logs {
		waited := time.Duration(at - log.pending)
		if log.pending == 0 || waited <= limit {
			continue
		}
		if pid, ok := pids[number]; ok && processState(pid) != "" && processState(pid) != "Z" {
			stuck = append(stuck, Waiting{Number: number, Kind: log.kind, For: waited})
		}
	}
	return stuck
}

// Await waits until the load has made n more opens than it had at from: what was
// broken is still, or again, answered.
func (r *Run) Await(tb testing.TB, from int64, n int) {
	tb.Helper()
	await(tb, "the load goes on", startPatience, func() error {
		if got := r.Report(tb, from, 0).Total.Opens; got < n {
			return fmt.Errorf("%d opens of %d", got, n)
		}
		return nil
	})
}

// read reads what the logs have grown by, and returns those of the processes that are
// ready.
func (r *Run) read(tb testing.TB) map[int]log {
	tb.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		tb.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ready := map[int]log{}
	for _, entry := range entries {
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue // go, stop
		}
		if r.logs[number] == nil {
			r.logs[number] = &log{}
		}
		l := r.logs[number]
		if err := l.read(filepath.Join(r.dir, entry.Name())); err != nil {
			tb.Fatalf("log of process %d: %v", number, err)
		}
		if l.pid != 0 {
			ready[number] = *l
		}
	}
	return ready
}

// read takes the whole lines that are new in a file.
func (l *log) read(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, l.offset, math.MaxInt64-l.offset))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		l.offset += int64(len(line))
		if err := l.take(strings.Fields(line)); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
	}
	return nil
}

// take understands one line; package main of the guest says what stands in it.
func (l *log) take(fields []string) error {
	var err error
	number := func(i int) int64 {
		n, e := strconv.ParseInt(fields[i], 10, 64)
		if e != nil {
			err = e
		}
		return n
	}
	switch {
	case len(fields) == 2 && fields[0] == "p":
		l.pid = int(number(1))
	case len(fields) == 3 && fields[0] == "b":
		l.kind, l.pending = fields[1], number(2)
	case len(fields) == 8 && fields[0] == "e":
		l.pending = 0
		l.opens = append(l.opens, open{
			kind: fields[1], start: number(2), end: number(3), bad: fields[4] == Bad,
			errno: unix.Errno(number(5)), badBytes: int(number(7)), //nolint:gosec // an errno
		})
	default:
		return fmt.Errorf("not a line of a load's log")
	}
	return err
}
