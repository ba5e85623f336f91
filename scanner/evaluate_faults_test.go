package scanner_test

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestEvaluateJoins has a scanner that goes on using the file after it was
// cancelled: Evaluate must not return before it is done.
func TestEvaluateJoins(t *testing.T) {
	finished, begun := false, make(chan struct{})
	stubborn := scannertest.NewFake("1", func(ctx context.Context, _ *scanner.File, _ scanner.Generation) scanner.Verdict {
		close(begun)
		<-ctx.Done()
		for range 1000 {
			runtime.Gosched()
		}
		finished = true
		return scanner.CleanVerdict("1")
	})
	prompt := scannertest.NewFake("2", func(_ context.Context, _ *scanner.File, gen scanner.Generation) scanner.Verdict {
		<-begun
		return scanner.CleanVerdict(gen)
	})
	got := scanner.Evaluate(t.Context(), []scanner.Stage{
		stageOf(1, stubborn, prompt),
	}, scannertest.FileOf(t, nil))
	if !finished {
		t.Error("Evaluate returned while a scanner used the file")
	}
	if !got.Reports[0].NotAwaited || got.Verdict.Generation != "2" {
		t.Errorf("%+v", got)
	}
}

// TestEvaluateSharesGoroutine checks that a scanner alone in its stage runs on
// the caller's goroutine.
func TestEvaluateSharesGoroutine(t *testing.T) {
	before, during := runtime.NumGoroutine(), 0
	s := scannertest.NewFake("1", func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict {
		during = runtime.NumGoroutine()
		return scanner.CleanVerdict("1")
	})
	scanner.Evaluate(t.Context(), []scanner.Stage{stageOf(0, s), stageOf(1, s)}, scannertest.FileOf(t, nil))
	if during > before {
		t.Errorf("%d goroutines before, %d during the scan", before, during)
	}
}

// hostile is a scanner that does not keep to the rules.
type hostile struct {
	scanner.Instant
	act func() scanner.Verdict
}

func (h hostile) Scan(context.Context, *scanner.File) scanner.Verdict { return h.act() }

func (h hostile) ScanInstant(*scanner.File) (v scanner.Verdict, known bool) { return h.act(), true }

func hostileOf(act func() scanner.Verdict) scanner.Scanner { return hostile{act: act} }

func returning(v scanner.Verdict) func() scanner.Verdict {
	return func() scanner.Verdict { return v }
}

func TestEvaluatePanic(t *testing.T) {
	bad := hostileOf(func() scanner.Verdict { panic("boom") })
	for name, stage := range map[string]scanner.Stage{
		"alone":    stageOf(0, bad),
		"parallel": stageOf(0, bad, says(scanner.CleanVerdict("1"))),
		"nil":      stageOf(0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			f := scannertest.FileOf(t, nil)
			got := scanner.Evaluate(t.Context(), []scanner.Stage{stage}, f).Verdict
			var p *scanner.PanicError
			if got.Outcome != scanner.Error || !errors.As(got.Err, &p) || len(p.Stack) == 0 {
				t.Errorf("%+v", got)
			}
			if v, known := scanner.EvaluateInstant([]scanner.Stage{stage}, f); known {
				t.Errorf("EvaluateInstant: %+v", v)
			}
		})
	}
}

func TestEvaluateGoexit(t *testing.T) {
	gone := hostileOf(func() scanner.Verdict { runtime.Goexit(); return scanner.Verdict{} })
	got := scanner.Evaluate(t.Context(), []scanner.Stage{
		stageOf(0, gone, says(scanner.CleanVerdict("1"))),
	}, scannertest.FileOf(t, nil))
	if got.Verdict.Outcome != scanner.Error || got.Reports[0].Verdict.Err == nil {
		t.Errorf("%+v", got)
	}
}

// TestEvaluateUnsound gives verdicts that break the rules of Verdict.
func TestEvaluateUnsound(t *testing.T) {
	for name, v := range map[string]scanner.Verdict{
		"zero":               {},
		"unknown outcome":    {Outcome: 200, Mark: true, Generation: "1"},
		"marked error":       {Err: errTest, Mark: true, Generation: "1"},
		"marked unscannable": {Outcome: scanner.Unscannable, Reason: scanner.ReasonLimits, Mark: true, Generation: "1"},
		"marked, unknown":    {Outcome: scanner.Clean, Mark: true},
	} {
		t.Run(name, func(t *testing.T) {
			stages := []scanner.Stage{stageOf(0, hostileOf(returning(v)))}
			got := scanner.Evaluate(t.Context(), stages, scannertest.FileOf(t, nil)).Verdict
			if err := scannertest.CheckVerdict(got); err != nil {
				t.Error(err)
			}
			if got.Mark {
				t.Errorf("remembered: %+v", got)
			}
			instant, _ := scanner.EvaluateInstant(stages, scannertest.FileOf(t, nil))
			if instant.Outcome != got.Outcome || instant.Mark {
				t.Errorf("EvaluateInstant: %+v, Evaluate: %+v", instant, got)
			}
		})
	}
}
