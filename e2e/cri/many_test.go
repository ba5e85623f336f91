package cri

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

// TestManyTogether: a hundred containers that start together are all gated, from their
// first act on. How long they took is said, with what it takes without an agent, and
// judged by nobody here.
func TestManyTogether(t *testing.T) {
	const pods, each = 10, 10
	bare := Start(t, suite, Options{})
	bare.Observe(t) // it takes time as well
	without := together(t, bare, pods, each, wantAllRead)
	node, agent := StartInstalled(t, suite, Options{}, suite.Hashes(t))
	observer := node.Observe(t)
	with := together(t, node, pods, each, wantGated)
	wantNothingThrough(t, "all of it", observer)
	agent.AwaitIdle(t)
	report := fmt.Sprintf("%d containers together: %s; without agent and hook: %s; the agent has %d KiB of memory afterwards",
		pods*each, with, without, memory(t, agent.PID()))
	t.Log(report)
	if file := os.Getenv("ASSAY_REPORT"); file != "" {
		if err := os.WriteFile(file, []byte(report+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// Times are how long starts took.
type times struct {
	all           time.Duration // until the last one had started
	median, worst time.Duration // of StartContainer
}

func (s times) String() string {
	return fmt.Sprintf("all within %v, StartContainer median %v, longest %v",
		s.all.Round(time.Millisecond), s.median.Round(time.Millisecond), s.worst.Round(time.Millisecond))
}

// together starts so many containers in each of so many pods at once, and looks at what
// each has experienced.
func together(t *testing.T, node *Node, pods, each int, want func(*testing.T, string, harness.Result)) times {
	t.Helper()
	containers := createMany(t, runPods(t, node, pods), each, reads())
	began := time.Now()
	took := startAll(t, containers)
	s := times{all: time.Since(began)}
	for _, c := range containers {
		want(t, c.Name, c.Wait(t))
		c.Remove(t)
	}
	slices.Sort(took)
	s.median, s.worst = took[len(took)/2], took[len(took)-1]
	return s
}

// runPods starts so many pods.
func runPods(tb testing.TB, node *Node, n int) []*Pod {
	tb.Helper()
	pods := make([]*Pod, n)
	for i := range pods {
		pods[i] = node.RunPod(tb, PodSpec{})
	}
	return pods
}

// createMany makes so many containers in each of the pods.
func createMany(tb testing.TB, pods []*Pod, each int, args []string) []*Container {
	tb.Helper()
	var containers []*Container
	for _, pod := range pods {
		for range each {
			c, err := pod.Create(tb, Spec{Args: args})
			if err != nil {
				tb.Fatal(err)
			}
			containers = append(containers, c)
		}
	}
	return containers
}

// startAll starts containers at once and returns how long each took.
func startAll(tb testing.TB, containers []*Container) []time.Duration {
	tb.Helper()
	took := make([]time.Duration, len(containers))
	var all sync.WaitGroup
	for i, c := range containers {
		all.Go(func() {
			from := time.Now()
			if err := c.TryStart(tb); err != nil {
				tb.Errorf("start %s: %v", c.Name, err)
			}
			took[i] = time.Since(from)
		})
	}
	all.Wait()
	return took
}

// memory returns a process's resident memory in KiB.
func memory(tb testing.TB, pid int) int {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if size, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(size)[0])
			if err != nil {
				tb.Fatal(err)
			}
			return kib
		}
	}
	tb.Fatalf("process %d says nothing of its memory", pid)
	return 0
}
