package cri

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkStart measures what guarding adds to the start of a container (CRI's
// StartContainer), in one run: containers start in turn on a node without Assay and on
// one with plugin, hook and agent; then so many at once on each, three times in turn.
// The container's program ends at once, so that what its own opens cost is not in it.
func BenchmarkStart(b *testing.B) {
	bare := Start(b, suite, Options{})
	gated, agent := StartInstalled(b, suite, Options{}, suite.Hashes(b))
	nodes := [2][]*Pod{runPods(b, bare, 10), runPods(b, gated, 10)}
	b.Run("alone", func(b *testing.B) {
		const pairs = 60
		var took [2][]time.Duration
		for i := range pairs {
			for k := range nodes {
				n := (i + k) % 2 // neither is always the first
				took[n] = append(took[n], startAndEnd(b, nodes[n][:1], 1)...)
			}
		}
		compare(b, took)
	})
	b.Run("together", func(b *testing.B) {
		var took [2][]time.Duration
		for range 3 {
			for n := range nodes {
				took[n] = append(took[n], startAndEnd(b, nodes[n], 10)...)
			}
		}
		compare(b, took)
		b.ReportMetric(float64(memory(b, agent.PID()))/1024, "agent-MiB")
	})
	for _, pod := range slices.Concat(nodes[:]...) {
		pod.Remove(b)
	}
}

// startAndEnd starts so many containers in each of the pods at once, and returns how long
// each took to start.
func startAndEnd(b *testing.B, pods []*Pod, each int) []time.Duration {
	b.Helper()
	containers := createMany(b, pods, each, []string{"sh", "-c", ":"})
	took := startAll(b, containers)
	for _, c := range containers {
		if got := c.Wait(b); got.Code != 0 {
			b.Errorf("%s: %v", c.Name, got)
		}
		c.Remove(b)
	}
	return took
}

// compare reports what the second lot takes more than the first.
func compare(b *testing.B, took [2][]time.Duration) {
	b.Helper()
	for n, name := range []string{"bare", "gated"} {
		b.ReportMetric(ms(percentile(took[n], 50)), name+"-p50-ms")
		b.ReportMetric(ms(percentile(took[n], 99)), name+"-p99-ms")
	}
	for _, p := range []int{50, 99} {
		b.ReportMetric(ms(percentile(took[1], p)-percentile(took[0], p)), fmt.Sprintf("added-p%d-ms", p))
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)*p/100]
}
