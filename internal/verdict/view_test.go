package verdict

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/assay-project/assay/scanner"
)

// A counting scanner says the same about everything and counts how often.
type counting struct {
	verdict scanner.Verdict
	gen     scanner.Generation
	scans   atomic.Int32
}

func (s *counting) Scan(context.Context, *scanner.File) scanner.Verdict {
	s.scans.Add(1)
	return s.verdict
}
func (s *counting) Generation() scanner.Generation { return s.gen }
func (s *counting) Health(context.Context) error   { return nil }
func (s *counting) Close() error                   { return nil }

func config(string) string { return "config" }

// TestViewCombines settles stages from what is known, for every combination of
// what three scanners have said, under all rules.
func TestViewCombines(t *testing.T) {
	t.Parallel()
	layer, file := LayerScope("l"), &scanner.File{}
	for quorum := range 4 { // 0 is all
		for code := range 27 {
			c := acquired(Options{}, layer)
			stage := scanner.Stage{Decide: scanner.Decide{Quorum: quorum}}
			known, clean, bad := 0, 0, 0
			var kept []Kept
			for i, n := range []int{code % 3, code / 3 % 3, code / 9} { // missing, clean, malicious
				name := string(rune('a' + i))
				one := &counting{gen: "g", verdict: scanner.ErrorVerdict(errors.New("down"))}
				stage.Scanners = append(stage.Scanners, scanner.Named{Name: name, Scanner: one})
				switch n {
				case 1:
					known, clean = known+1, clean+1
					kept = append(kept, Kept{c.Scanner(name, "config"), "g", scanner.CleanVerdict("g")})
				case 2:
					known, bad = known+1, bad+1
					kept = append(kept, Kept{c.Scanner(name, "config"), "g", scanner.MaliciousVerdict("Bad", "g")})
				}
			}
			c.Keep(layer, keyOf(1), 1, kept)
			need := quorum
			if need == 0 {
				need = 3
			}
			view := c.NewPlan([]scanner.Stage{stage}, config).NewView()
			view.Look(0, layer, keyOf(1))
			v, settled := view.Settle(file)
			want, wantSettled := scanner.Clean, clean >= need
			if bad > 3-need {
				want, wantSettled = scanner.Malicious, true
			} else if bad > 0 && known == 3 && clean < need {
				want, wantSettled = scanner.Malicious, true
			} else if bad > 0 && clean+3-known < need {
				want, wantSettled = scanner.Malicious, true
			}
			if settled != wantSettled || settled && v.Outcome != want {
				t.Errorf("quorum %d, %d clean and %d malicious of %d known: settled %v as %v, want %v as %v",
					quorum, clean, bad, known, settled, v.Outcome, wantSettled, want)
			}
			if n := len(view.Reports()); n != known {
				t.Errorf("%d reports of %d known", n, known)
			}
		}
	}
}

// TestViewAsksOnlyWhoIsMissing also shows that a second policy gains from the
// first one's scan exactly what they share.
func TestViewAsksOnlyWhoIsMissing(t *testing.T) {
	t.Parallel()
	layer, file := LayerScope("l"), &scanner.File{}
	c := acquired(Options{}, layer)
	hashes := &counting{gen: "h1", verdict: scanner.CleanVerdict("h1")}
	clamav := &counting{gen: "c1", verdict: scanner.CleanVerdict("c1")}
	stage := func(name string, s scanner.Scanner) scanner.Stage {
		return scanner.Stage{Scanners: []scanner.Named{{Name: name, Scanner: s}}}
	}
	weak := c.NewPlan([]scanner.Stage{stage("hashes", hashes)}, config).NewView()
	strong := c.NewPlan([]scanner.Stage{stage("hashes", hashes), stage("clamav", clamav)}, config).NewView()
	open := func(v *View) scanner.Outcome {
		v.Look(0, layer, keyOf(1))
		if verdict, settled := v.Settle(file); settled {
			return verdict.Outcome
		}
		r := v.Evaluate(t.Context(), file)
		v.Keep(layer, keyOf(1), 1, r)
		return r.Verdict.Outcome
	}
	expect := func(v *View, outcome scanner.Outcome, h, cl int32) {
		t.Helper()
		if got := open(v); got != outcome || hashes.scans.Load() != h || clamav.scans.Load() != cl {
			t.Fatalf("%v after %d and %d scans, want %v after %d and %d", got, hashes.scans.Load(), clamav.scans.Load(), outcome, h, cl)
		}
	}
	expect(weak, scanner.Clean, 1, 0)
	expect(weak, scanner.Clean, 1, 0)
	clamav.verdict = scanner.MaliciousVerdict("Bad", "c1")
	expect(strong, scanner.Malicious, 1, 1) // the weak tenant's verdict did not vouch
	expect(strong, scanner.Malicious, 1, 1)
	expect(weak, scanner.Clean, 1, 1)
	clamav.gen = "c2" // a new database: only its scanner is asked again
	clamav.verdict = scanner.ErrorVerdict(errors.New("reloading"))
	expect(strong, scanner.Error, 1, 2)
	expect(strong, scanner.Error, 1, 3) // an error is not kept
	clamav.verdict = scanner.CleanVerdict("c1")
	expect(strong, scanner.Clean, 1, 4)
	expect(strong, scanner.Clean, 1, 5) // nor is what an old generation says
	clamav.verdict = scanner.CleanVerdict("c2")
	expect(strong, scanner.Clean, 1, 6)
	expect(strong, scanner.Clean, 1, 6)
	hashes.gen = "" // unknown matches nothing
	expect(strong, scanner.Clean, 2, 6)
}

// TestFastPathDoesNotAllocate covers a hit, a miss and a stale generation.
func TestFastPathDoesNotAllocate(t *testing.T) {
	layer, file := LayerScope("l"), &scanner.File{}
	c := acquired(Options{}, layer)
	a, b := &counting{gen: "g"}, &counting{gen: "h"}
	plan := c.NewPlan([]scanner.Stage{{Scanners: []scanner.Named{{Name: "a", Scanner: a}, {Name: "b", Scanner: b}}}}, config)
	c.Keep(layer, keyOf(1), 1, []Kept{clean(plan.scanners[0], "g"), malicious(plan.scanners[1], "h", "Bad")})
	view := plan.NewView()
	for _, key := range []FileKey{keyOf(1), keyOf(2)} {
		if n := testing.AllocsPerRun(1000, func() {
			view.Look(3, layer, key)
			view.Settle(file)
			_, _ = c.Lookup(0, layer, key, view.wanted, view.got), c.Lookup(0, Scope{}, key, view.wanted, view.got)
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
