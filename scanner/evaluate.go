package scanner

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

var (
	errNoScanner = errors.New("the policy has a stage without scanners, or no stage at all: name at least one scanner")
	errNoVerdict = errors.New("the scanner returned without a verdict: this is a defect of the scanner")
)

// A PanicError is the error of a scanner that panicked instead of judging.
type PanicError struct {
	Value any    // what it panicked with
	Stack []byte // where, as text
}

// Error names the value; the stack is left to whoever writes a report.
func (e *PanicError) Error() string {
	return fmt.Sprintf("the scanner panicked: %v: this is a defect of the scanner", e.Value)
}

// Evaluate runs the stages one after another on f, and the scanners of a stage
// in parallel, and combines what they say.
//
// A stage is clean once as many of its scanners as [Decide] asks for say so. It
// is malicious once one says so and too few are left to still make it clean.
// Otherwise it is the worst that any of them said. The scanners that are then
// still at work are cancelled. Over stages the worst wins as well: malicious,
// then error, then unscannable, then clean. Only a malicious stage is the last:
// after an error or an unscannable verdict later stages may still find something.
//
// The combined verdict is that of the scanners that made it so (for equal ones
// the first in order is named). It may be remembered if each of theirs may, and
// if no failure helped to decide; its Generation is set if there was just one of
// them, and otherwise each stands in the Reports. Its error names the scanner.
// No stages, or a stage without scanners, is an error.
//
// Evaluate returns when every scanner has returned, because f's descriptor is
// only lent: a scanner that ignores ctx delays it. Whoever has a deadline to
// keep does so by a timer of its own. A scanner that panics has failed, with a
// *[PanicError].
func Evaluate(ctx context.Context, stages []Stage, f *File) Result {
	total := 0
	for i := range stages {
		total += len(stages[i].Scanners)
	}
	reports := make([]Report, 0, total)
	var sum combination
	for i := range stages {
		started := len(reports)
		for j := range stages[i].Scanners {
			reports = append(reports, Report{Name: stages[i].Scanners[j].Name})
		}
		sum.add(stages[i].run(ctx, f, reports[started:]))
		if sum.verdict.Outcome == Malicious {
			break
		}
	}
	if sum.count == 0 {
		sum = noScanner()
	}
	if sum.verdict.Outcome == Error && sum.by != "" {
		sum.verdict.Err = fmt.Errorf("scanner %s: %w", sum.by, sum.verdict.Err)
	}
	return Result{Verdict: sum.verdict, Reports: reports}
}

// EvaluateInstant returns the verdict that [Evaluate] would give, if that can be
// said by those scanners alone that implement [Instant] and know their answer.
// It does not block and does not allocate.
func EvaluateInstant(stages []Stage, f *File) (v Verdict, known bool) {
	var sum combination
	for i := range stages {
		stage, known := stages[i].instant(f)
		if !known {
			return Verdict{}, false
		}
		sum.add(stage)
		if sum.verdict.Outcome == Malicious {
			break
		}
	}
	if sum.count == 0 {
		sum = noScanner()
	}
	return sum.verdict, true
}

// run runs the stage's scanners; reports has one element for each.
func (s *Stage) run(ctx context.Context, f *File, reports []Report) combination {
	switch len(s.Scanners) {
	case 0:
		return noScanner()
	case 1:
		s.Scanners[0].scan(ctx, f, &reports[0])
		return combination{verdict: reports[0].Verdict, by: reports[0].Name, count: 1}
	default:
		s.runParallel(ctx, f, reports)
	}
	votes := s.votes()
	for i := range reports {
		if !reports[i].NotAwaited {
			votes.add(reports[i].Name, reports[i].Verdict)
		}
	}
	return votes.result()
}

// runParallel fills the reports. It returns when all scanners have, but cancels
// those that can no longer change the outcome.
func (s *Stage) runParallel(ctx context.Context, f *File, reports []Report) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan int, len(s.Scanners))
	for i := range s.Scanners {
		go func() {
			defer func() { done <- i }() // Also if the scanner ends its goroutine.
			s.Scanners[i].scan(ctx, f, &reports[i])
		}()
	}
	votes := s.votes()
	for range s.Scanners {
		i := <-done
		if votes.settled() {
			reports[i].NotAwaited = true
			continue
		}
		votes.add(reports[i].Name, reports[i].Verdict)
		if votes.settled() {
			cancel()
		}
	}
}

// instant is run for scanners that know their answer at once.
func (s *Stage) instant(f *File) (result combination, known bool) {
	switch len(s.Scanners) {
	case 0:
		return noScanner(), true
	case 1:
		v, known := s.Scanners[0].scanInstant(f)
		return combination{verdict: v, by: s.Scanners[0].Name, count: 1}, known
	}
	votes := s.votes()
	for i := range s.Scanners {
		if v, known := s.Scanners[i].scanInstant(f); known {
			votes.add(s.Scanners[i].Name, v)
		}
		if votes.settled() {
			return votes.result(), true
		}
	}
	return combination{}, false
}

// scan runs one scanner and fills its report, whatever the scanner does.
func (n *Named) scan(ctx context.Context, f *File, report *Report) {
	start := time.Now()
	report.Verdict = ErrorVerdict(errNoVerdict)
	defer func() {
		if p := recover(); p != nil {
			report.Verdict = ErrorVerdict(&PanicError{Value: p, Stack: debug.Stack()})
		}
		report.Micros = time.Since(start).Microseconds()
	}()
	report.Verdict = n.Scan(ctx, f).sound()
}

// scanInstant asks a scanner that can be asked. One that panics does not know:
// it will be asked again by Evaluate, where the panic is reported.
func (n *Named) scanInstant(f *File) (v Verdict, known bool) {
	defer func() {
		if recover() != nil {
			v, known = Verdict{}, false
		}
	}()
	if i, ok := n.Scanner.(Instant); ok {
		v, known = i.ScanInstant(f)
		return v.sound(), known
	}
	return Verdict{}, false
}

// sound returns v as far as it may be believed: what breaks the rules of
// Verdict in a way that would allow or remember a file is taken out.
func (v Verdict) sound() Verdict {
	switch v.Outcome {
	case Clean, Malicious:
		v.Mark = v.Mark && v.Generation != ""
		return v
	case Unscannable:
		v.Mark = false
		return v
	case Error:
		if v.Err != nil {
			v.Mark = false
			return v
		}
	}
	return ErrorVerdict(errNoVerdict)
}

// A combination is what several scanners say as one.
type combination struct {
	verdict Verdict
	by      string // name of the first scanner that made it so
	count   int    // number of scanners that did
}

func noScanner() combination { return combination{verdict: ErrorVerdict(errNoScanner), count: 1} }

// add makes c the worse of c and other, or of equal ones both together.
func (c *combination) add(other combination) {
	switch worse := severity(other.verdict.Outcome) - severity(c.verdict.Outcome); {
	case c.count == 0 || worse > 0:
		*c = other
	case worse == 0:
		c.verdict.Mark = c.verdict.Mark && other.verdict.Mark
		c.verdict.Generation = ""
		c.count += other.count
	}
}

// severity orders the outcomes.
func severity(o Outcome) int {
	switch o {
	case Clean:
		return 0
	case Unscannable:
		return 1
	case Malicious:
		return 3
	case Error:
	}
	return 2
}

// The votes of one stage's scanners.
type votes struct {
	need    int // clean verdicts that make the stage clean
	pending int // scanners that have not voted
	clean   combination
	bad     combination // the worst of those that are not clean
	enough  int         // verdicts other than clean that keep the stage from being clean
}

func (s *Stage) votes() votes {
	n, need := len(s.Scanners), s.Decide.Quorum
	if need <= 0 || need > n {
		need = n
	}
	return votes{need: need, pending: n, enough: n - need + 1}
}

func (v *votes) add(name string, verdict Verdict) {
	v.pending--
	vote := combination{verdict: verdict, by: name, count: 1}
	if verdict.Outcome == Clean {
		v.clean.add(vote)
	} else {
		v.bad.add(vote)
	}
}

// settled reports whether the votes that are pending cannot change the outcome.
func (v *votes) settled() bool {
	if v.clean.count >= v.need || v.pending == 0 {
		return true
	}
	return v.bad.verdict.Outcome == Malicious && v.clean.count+v.pending < v.need
}

// result returns the outcome of settled votes.
func (v *votes) result() combination {
	if v.clean.count >= v.need {
		return v.clean
	}
	if v.bad.count < v.enough {
		// Some scanner's failure helped to miss the quorum: with its answer the
		// same file may be clean.
		v.bad.verdict.Mark = false
	}
	return v.bad
}
