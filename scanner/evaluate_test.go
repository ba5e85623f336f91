package scanner_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTest = errors.New("broken for the test")

// verdictOf returns a verdict of outcome o, marked under gen where it may be.
func verdictOf(o scanner.Outcome, gen scanner.Generation) scanner.Verdict {
	switch o {
	case scanner.Clean:
		return scanner.CleanVerdict(gen)
	case scanner.Malicious:
		return scanner.MaliciousVerdict("Test.Evil", gen)
	case scanner.Unscannable:
		return scanner.UnscannableVerdict(scanner.ReasonLimits, gen)
	default:
		return scanner.ErrorVerdict(errTest)
	}
}

func says(v scanner.Verdict) scanner.Scanner { return scannertest.Always(v) }

// stageOf returns a stage of scanners named a, b, c.
func stageOf(quorum int, scanners ...scanner.Scanner) scanner.Stage {
	stage := scanner.Stage{Decide: scanner.Decide{Quorum: quorum}}
	for i, s := range scanners {
		stage.Scanners = append(stage.Scanners, scanner.Named{Name: string(rune('a' + i)), Scanner: s})
	}
	return stage
}

// eachCase calls fn for every way in which n scanners can answer under every rule.
func eachCase(t *testing.T, fn func(t *testing.T, votes []scanner.Outcome, quorum int)) {
	t.Helper()
	for n := 1; n <= 3; n++ {
		for _, votes := range waysToVote(n) {
			for _, quorum := range []int{0, 1, 2, 9} {
				t.Run(fmt.Sprintf("%v/%d", votes, quorum), func(t *testing.T) { fn(t, votes, quorum) })
			}
		}
	}
}

func waysToVote(n int) [][]scanner.Outcome {
	if n == 0 {
		return [][]scanner.Outcome{nil}
	}
	var all [][]scanner.Outcome
	for _, head := range []scanner.Outcome{scanner.Error, scanner.Clean, scanner.Malicious, scanner.Unscannable} {
		for _, tail := range waysToVote(n - 1) {
			all = append(all, append([]scanner.Outcome{head}, tail...))
		}
	}
	return all
}

// expected is the rule for one stage, said another way: count, then the worst.
func expected(votes []scanner.Outcome, quorum int) scanner.Outcome {
	clean := 0
	for _, o := range votes {
		if o == scanner.Clean {
			clean++
		}
	}
	if clean == len(votes) || quorum > 0 && clean >= quorum {
		return scanner.Clean
	}
	for _, worst := range []scanner.Outcome{scanner.Malicious, scanner.Error} {
		if slices.Contains(votes, worst) {
			return worst
		}
	}
	return scanner.Unscannable
}

func TestEvaluateOneStage(t *testing.T) {
	eachCase(t, func(t *testing.T, votes []scanner.Outcome, quorum int) {
		t.Helper()
		var scanners []scanner.Scanner
		for _, o := range votes {
			scanners = append(scanners, says(verdictOf(o, "1")))
		}
		stages := []scanner.Stage{stageOf(quorum, scanners...)}
		f := scannertest.FileOf(t, nil)

		got := scanner.Evaluate(t.Context(), stages, f)
		if want := expected(votes, quorum); got.Verdict.Outcome != want {
			t.Errorf("got %v, want %v", got.Verdict.Outcome, want)
		}
		checkCombined(t, got.Verdict)
		for i, r := range got.Reports {
			if r.Name != string(rune('a'+i)) || !r.NotAwaited && r.Verdict.Outcome != votes[i] || r.Micros < 0 {
				t.Errorf("report %d: %+v", i, r)
			}
		}
		if len(got.Reports) != len(votes) {
			t.Errorf("%d reports, want %d", len(got.Reports), len(votes))
		}

		instant, known := scanner.EvaluateInstant(stages, f)
		if !known || instant.Outcome != got.Verdict.Outcome {
			t.Errorf("EvaluateInstant: %v, %v; Evaluate: %v", instant.Outcome, known, got.Verdict.Outcome)
		}
		checkCombined(t, instant)
	})
}

// checkCombined is scannertest.CheckVerdict for a verdict of several scanners,
// which may be marked without a generation of its own.
func checkCombined(t *testing.T, v scanner.Verdict) {
	t.Helper()
	if v.Mark && v.Generation == "" {
		v.Generation = "in the reports"
	}
	if err := scannertest.CheckVerdict(v); err != nil {
		t.Error(err)
	}
}

// split returns the votes of the scanners that are in set and of those that are not.
func split(votes []scanner.Outcome, set int) (in, out []scanner.Outcome) {
	for i, o := range votes {
		if set>>i&1 == 1 {
			in = append(in, o)
		} else {
			out = append(out, o)
		}
	}
	return in, out
}

// decided reports whether the outcome is the same whatever others more say.
func decided(votes []scanner.Outcome, others, quorum int) bool {
	seen := map[scanner.Outcome]bool{}
	for _, rest := range waysToVote(others) {
		seen[expected(slices.Concat(votes, rest), quorum)] = true
	}
	return len(seen) == 1
}

// TestEvaluateSettles lets scanners hang until they are cancelled wherever the
// others decide.
func TestEvaluateSettles(t *testing.T) {
	eachCase(t, func(t *testing.T, votes []scanner.Outcome, quorum int) {
		t.Helper()
		quorum = min(quorum, len(votes))
		for set := 1; set < 1<<len(votes)-1; set++ {
			hung, prompt := split(votes, set)
			if !decided(prompt, len(hung), quorum) {
				continue
			}
			got := scanner.Evaluate(t.Context(), []scanner.Stage{
				stageWithLate(votes, set, quorum, scannertest.Hang(nil)),
			}, scannertest.FileOf(t, nil))
			want := expected(slices.Concat(prompt, make([]scanner.Outcome, len(hung))), quorum)
			if got.Verdict.Outcome != want {
				t.Errorf("hung %03b: got %v, want %v", set, got.Verdict.Outcome, want)
			}
			for i, r := range got.Reports {
				if set>>i&1 == 1 && (!r.NotAwaited || !errors.Is(r.Verdict.Err, context.Canceled)) {
					t.Errorf("hung %03b: %s did not matter, but: %+v", set, r.Name, r)
				}
			}
		}
	})
}

// TestEvaluateAwaits lets one scanner answer after all others, wherever its
// answer matters: it must not be cancelled.
func TestEvaluateAwaits(t *testing.T) {
	eachCase(t, func(t *testing.T, votes []scanner.Outcome, quorum int) {
		t.Helper()
		quorum = min(quorum, len(votes))
		for late := range votes {
			set := 1 << late
			if _, prompt := split(votes, set); decided(prompt, 1, quorum) {
				continue
			}
			answer := func(ctx context.Context, _ *scanner.File, gen scanner.Generation) scanner.Verdict {
				for range 100 {
					runtime.Gosched() // The others answer.
				}
				if ctx.Err() != nil {
					t.Error("cancelled although its answer was needed")
				}
				return verdictOf(votes[late], gen)
			}
			got := scanner.Evaluate(t.Context(), []scanner.Stage{
				stageWithLate(votes, set, quorum, answer),
			}, scannertest.FileOf(t, nil))
			if want := expected(votes, quorum); got.Verdict.Outcome != want {
				t.Errorf("%d is late: got %v, want %v", late, got.Verdict.Outcome, want)
			}
		}
	})
}

// stageWithLate returns a stage in which the scanners of the set follow the
// script late and the others say what votes has for them.
func stageWithLate(votes []scanner.Outcome, set, quorum int, late scannertest.Script) scanner.Stage {
	var scanners []scanner.Scanner
	for i, o := range votes {
		if set>>i&1 == 1 {
			scanners = append(scanners, scannertest.NewFake("1", late))
		} else {
			scanners = append(scanners, says(verdictOf(o, "1")))
		}
	}
	return stageOf(quorum, scanners...)
}

func TestEvaluateStages(t *testing.T) {
	rank := map[scanner.Outcome]int{scanner.Clean: 0, scanner.Unscannable: 1, scanner.Error: 2, scanner.Malicious: 3}
	for n := 1; n <= 3; n++ {
		for _, votes := range waysToVote(n) {
			t.Run(fmt.Sprintf("%v", votes), func(t *testing.T) {
				var stages []scanner.Stage
				want, started := scanner.Clean, 0
				for _, o := range votes {
					stages = append(stages, stageOf(0, says(verdictOf(o, "1"))))
					if want == scanner.Malicious {
						continue
					}
					started++
					if rank[o] > rank[want] {
						want = o
					}
				}
				got := scanner.Evaluate(t.Context(), stages, scannertest.FileOf(t, nil))
				if got.Verdict.Outcome != want || len(got.Reports) != started {
					t.Errorf("got %v of %d scanners, want %v of %d", got.Verdict.Outcome, len(got.Reports), want, started)
				}
				instant, known := scanner.EvaluateInstant(stages, scannertest.FileOf(t, nil))
				if !known || instant.Outcome != want {
					t.Errorf("EvaluateInstant: %v, %v; want %v", instant.Outcome, known, want)
				}
			})
		}
	}
}

func TestEvaluateMark(t *testing.T) {
	clean, unmarked := scanner.CleanVerdict, scanner.CleanVerdict("")
	evil := func(gen scanner.Generation) scanner.Verdict {
		return scanner.MaliciousVerdict("Evil."+string(gen), gen)
	}
	failed := scanner.ErrorVerdict(errTest)
	one := func(quorum int, vs ...scanner.Verdict) scanner.Stage {
		var scanners []scanner.Scanner
		for _, v := range vs {
			scanners = append(scanners, says(v))
		}
		return stageOf(quorum, scanners...)
	}
	for name, c := range map[string]struct {
		stages []scanner.Stage
		mark   bool
		gen    scanner.Generation
	}{
		"one":                       {[]scanner.Stage{one(0, clean("1"))}, true, "1"},
		"one unmarked":              {[]scanner.Stage{one(0, unmarked)}, false, ""},
		"two":                       {[]scanner.Stage{one(0, clean("1"), clean("1"))}, true, ""},
		"two, one unmarked":         {[]scanner.Stage{one(0, clean("1"), unmarked)}, false, ""},
		"two stages":                {[]scanner.Stage{one(0, clean("1")), one(0, clean("2"))}, true, ""},
		"two stages, one unmarked":  {[]scanner.Stage{one(0, unmarked), one(0, clean("2"))}, false, ""},
		"any, the other failed":     {[]scanner.Stage{one(1, failed, clean("2"))}, true, "2"},
		"all, one malicious":        {[]scanner.Stage{one(0, failed, evil("2"))}, true, "2"},
		"any, malicious and failed": {[]scanner.Stage{one(1, failed, evil("2"))}, false, "2"},
		"any, both malicious":       {[]scanner.Stage{one(1, evil("1"), evil("2"))}, true, ""},
		"malicious after failure":   {[]scanner.Stage{one(0, failed), one(0, evil("2"))}, true, "2"},
		"failure after clean":       {[]scanner.Stage{one(0, clean("1")), one(0, failed)}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := scanner.Evaluate(t.Context(), c.stages, scannertest.FileOf(t, nil)).Verdict
			if got.Mark != c.mark || got.Generation != c.gen {
				t.Errorf("got mark %v under %q, want %v under %q", got.Mark, got.Generation, c.mark, c.gen)
			}
			instant, known := scanner.EvaluateInstant(c.stages, scannertest.FileOf(t, nil))
			if !known || instant.Mark != c.mark || instant.Generation != c.gen {
				t.Errorf("EvaluateInstant: %v, %+v", known, instant)
			}
		})
	}
}

// TestEvaluateDetail checks what stands in the combined verdict.
func TestEvaluateDetail(t *testing.T) {
	f := scannertest.FileOf(t, nil)
	stages := []scanner.Stage{stageOf(0, says(verdictOf(scanner.Unscannable, "1")), says(verdictOf(scanner.Unscannable, "1")))}
	if v := scanner.Evaluate(t.Context(), stages, f).Verdict; v.Reason != scanner.ReasonLimits {
		t.Errorf("reason: %+v", v)
	}
	stages = append(stages, stageOf(0, says(verdictOf(scanner.Error, ""))))
	stages[1].Scanners[0].Name = "third"
	v := scanner.Evaluate(t.Context(), stages, f).Verdict
	if !errors.Is(v.Err, errTest) || v.Err.Error() != "scanner third: "+errTest.Error() {
		t.Errorf("error: %v", v.Err)
	}
	stages = append(stages, stageOf(0, says(verdictOf(scanner.Malicious, "1"))))
	if v := scanner.Evaluate(t.Context(), stages, f).Verdict; v.Signature != "Test.Evil" || v.Err != nil || v.Reason != "" {
		t.Errorf("signature: %+v", v)
	}
}

func TestEvaluateNothing(t *testing.T) {
	clean := stageOf(0, says(scanner.CleanVerdict("1")))
	for name, stages := range map[string][]scanner.Stage{
		"no stages":   nil,
		"empty stage": {{}},
		"one of two":  {clean, {}},
		"the other":   {{}, clean},
	} {
		t.Run(name, func(t *testing.T) {
			f := scannertest.FileOf(t, nil)
			got := scanner.Evaluate(t.Context(), stages, f).Verdict
			if got.Outcome != scanner.Error || got.Err == nil {
				t.Errorf("Evaluate: %+v", got)
			}
			if got, known := scanner.EvaluateInstant(stages, f); !known || got.Outcome != scanner.Error || got.Err == nil {
				t.Errorf("EvaluateInstant: %v, %+v", known, got)
			}
		})
	}
}
