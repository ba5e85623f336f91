package scanner_test

import (
	"testing"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

func TestEvaluateInstantNeeds(t *testing.T) {
	clean, evil := says(scanner.CleanVerdict("1")), says(verdictOf(scanner.Malicious, "1"))
	failed := says(verdictOf(scanner.Error, ""))
	slow := scannertest.NewFake("1", scannertest.Contains("x", "y")) // Not Instant.
	for name, c := range map[string]struct {
		stages []scanner.Stage
		known  bool
		want   scanner.Outcome
	}{
		"slow alone":             {[]scanner.Stage{stageOf(0, slow)}, false, 0},
		"all need the slow":      {[]scanner.Stage{stageOf(0, clean, slow)}, false, 0},
		"any does not":           {[]scanner.Stage{stageOf(1, slow, clean)}, true, scanner.Clean},
		"any may need it":        {[]scanner.Stage{stageOf(1, slow, evil)}, false, 0},
		"malicious settles all":  {[]scanner.Stage{stageOf(0, slow, evil)}, true, scanner.Malicious},
		"an error does not":      {[]scanner.Stage{stageOf(0, slow, failed)}, false, 0},
		"slow second stage":      {[]scanner.Stage{stageOf(0, clean), stageOf(0, slow)}, false, 0},
		"not after malicious":    {[]scanner.Stage{stageOf(0, evil), stageOf(0, slow)}, true, scanner.Malicious},
		"two of three are known": {[]scanner.Stage{stageOf(2, clean, slow, clean)}, true, scanner.Clean},
	} {
		t.Run(name, func(t *testing.T) {
			got, known := scanner.EvaluateInstant(c.stages, scannertest.FileOf(t, nil))
			if known != c.known || got.Outcome != c.want {
				t.Errorf("got %v, %v; want %v, %v", got.Outcome, known, c.want, c.known)
			}
		})
	}
	if slow.Calls() != 0 {
		t.Error("EvaluateInstant has called Scan")
	}
}

func TestEvaluateInstantDoesNotAllocate(t *testing.T) {
	clean := says(scanner.CleanVerdict("1"))
	slow := scannertest.NewFake("1", scannertest.Hang(nil))
	f := scannertest.FileOf(t, nil)
	for name, stages := range map[string][]scanner.Stage{
		"one":       {stageOf(0, clean)},
		"several":   {stageOf(0, clean, clean), stageOf(1, slow, clean, clean)},
		"unknown":   {stageOf(0, clean), stageOf(0, slow)},
		"nothing":   nil,
		"malicious": {stageOf(0, says(verdictOf(scanner.Malicious, "1")))},
	} {
		t.Run(name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, func() { scanner.EvaluateInstant(stages, f) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkEvaluate(b *testing.B) {
	clean := says(scanner.CleanVerdict("1"))
	f := scannertest.FileOf(b, nil)
	one, two := []scanner.Stage{stageOf(0, clean)}, []scanner.Stage{stageOf(0, clean, clean)}
	b.Run("instant", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			scanner.EvaluateInstant(one, f)
		}
	})
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			scanner.Evaluate(b.Context(), one, f)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			scanner.Evaluate(b.Context(), two, f)
		}
	})
}
