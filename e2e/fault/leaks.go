package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// A Sample is what an agent holds at one moment, as the kernel sees it, but for the
// goroutines, which only the agent knows of.
type Sample struct {
	Descriptors map[string]int // by kind: what /proc says of them, without numbers
	Goroutines  int
	Marks       int   // fanotify marks of all its groups
	Leases      int   // in the kernel's list of locks
	RSS         int64 // bytes
}

func (s Sample) total() int {
	n := 0
	for _, of := range s.Descriptors {
		n += of
	}
	return n
}

func (s Sample) String() string {
	return fmt.Sprintf("%d descriptors %v, %d goroutines, %d marks, %d leases, %d MiB",
		s.total(), s.Descriptors, s.Goroutines, s.Marks, s.Leases, s.RSS>>20)
}

// Take samples an agent.
func Take(tb testing.TB, agent *harness.Agent) Sample {
	tb.Helper()
	s := Sample{
		Descriptors: map[string]int{}, Goroutines: agent.Status(tb).Goroutines,
		Leases: leases(tb, agent), RSS: statusField(tb, agent.PID(), "VmRSS:"),
	}
	for _, target := range agent.Descriptors(tb) {
		s.Descriptors[kindOf(target)]++
	}
	for _, pid := range agent.Keepers() { // none for a moment, if the last one was lost
		for _, target := range harness.Descriptors(tb, pid) {
			s.Descriptors["keeper's "+kindOf(target)]++
		}
	}
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", agent.PID()))
	if err != nil {
		tb.Fatal(err)
	}
	for _, info := range infos {
		text, _ := os.ReadFile(info) // it may be closed by now
		for line := range strings.Lines(string(text)) {
			// The first line of a group is "fanotify flags:", of its marks "fanotify ino:",
			// "fanotify mnt_id:" and "fanotify sdev:".
			if strings.HasPrefix(line, "fanotify ") && !strings.HasPrefix(line, "fanotify flags:") {
				s.Marks++
			}
		}
	}
	return s
}

// kindOf names what a descriptor points to without what makes it one of its kind.
func kindOf(target string) string {
	if kind, _, ok := strings.Cut(target, ":["); ok && !strings.HasPrefix(target, "anon_inode") {
		return kind
	}
	if strings.HasPrefix(target, "/") {
		return "file"
	}
	return target
}

// These are what may be more after a load than before it: a connection that is kept, a
// file that is being looked at this moment.
const (
	spareDescriptors = 6
	spareGoroutines  = 6
)

// wantBaseline fails tb unless an agent that guards nothing comes to hold as little as
// it did before.
func wantBaseline(tb testing.TB, agent *harness.Agent, before Sample) {
	tb.Helper()
	harness.Eventually(tb, "the agent gives back what it took", func() error {
		now := Take(tb, agent)
		if now.total() > before.total()+spareDescriptors || now.Goroutines > before.Goroutines+spareGoroutines ||
			now.Marks > before.Marks || now.Leases > before.Leases {
			return fmt.Errorf("it holds %v\nbefore it was %v", now, before)
		}
		return nil
	})
}

// leases returns how many leases the kernel has on record for an agent.
func leases(tb testing.TB, agent *harness.Agent) int {
	tb.Helper()
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 5 && fields[1] == "LEASE" && slices.Contains(fields[3:6], strconv.Itoa(agent.PID())) {
			n++
		}
	}
	return n
}

// highWater returns the most memory that an agent has had, in bytes.
func highWater(tb testing.TB, agent *harness.Agent) int64 {
	tb.Helper()
	return statusField(tb, agent.PID(), "VmHWM:")
}

// statusField returns a size in bytes out of a process's status.
func statusField(tb testing.TB, pid int, name string) int64 {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kib << 10
		}
	}
	tb.Fatalf("process %d has no %s", pid, name)
	return 0
}
