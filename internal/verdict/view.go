package verdict

import (
	"context"

	"github.com/assay-project/assay/scanner"
)

// A Plan is a policy's stages as a cache sees them. It is immutable.
type Plan struct {
	cache    *Cache
	stages   []scanner.Stage
	scanners []*Scanner // of all stages, in order
}

// NewPlan returns the plan of a policy's stages. The function config returns the
// hash of the driver configuration of a scanner by its configured name.
func (c *Cache) NewPlan(stages []scanner.Stage, config func(name string) string) *Plan {
	p := &Plan{cache: c, stages: stages}
	for i := range stages {
		for _, named := range stages[i].Scanners {
			p.scanners = append(p.scanners, c.Scanner(named.Name, config(named.Name)))
		}
	}
	return p
}

// Scanner returns the plan's scanner of a configured name, or nil.
func (p *Plan) Scanner(name string) *Scanner {
	for _, s := range p.scanners {
		if s.name == name {
			return s
		}
	}
	return nil
}

// A View is a plan with what is known about one file after the other: the
// policy's stages, in which whoever's verdict is known is not asked again. It is
// for one goroutine at a time and made to be used many times over.
type View struct {
	plan    *Plan
	stages  []scanner.Stage // with stand-ins for the plan's scanners
	standIn []standIn       // of all stages, in order
	wanted  []Want
	got     []scanner.Verdict
	known   uint64
}

// NewView returns a view that knows nothing yet.
func (p *Plan) NewView() *View {
	n := len(p.scanners)
	v := &View{
		plan: p, standIn: make([]standIn, n), wanted: make([]Want, n), got: make([]scanner.Verdict, n),
	}
	all := 0
	for _, stage := range p.stages {
		seen := scanner.Stage{Decide: stage.Decide}
		for _, named := range stage.Scanners {
			v.standIn[all] = standIn{Scanner: named.Scanner, view: v, index: all}
			v.wanted[all].Scanner = p.scanners[all]
			seen.Scanners = append(seen.Scanners, scanner.Named{Name: named.Name, Scanner: &v.standIn[all]})
			all++
		}
		v.stages = append(v.stages, seen)
	}
	return v
}

// Look learns what is known about a file under the generations in force now. It
// neither locks nor allocates, if no scanner's Generation does.
func (v *View) Look(at Lane, id Scope, key FileKey) {
	for i := range v.wanted {
		v.wanted[i].Generation = v.standIn[i].Generation()
	}
	v.known = v.plan.cache.Lookup(at, id, key, v.wanted, v.got)
}

// Peek is Look for whoever only wants to know: it counts as no lookup and as no use.
func (v *View) Peek(id Scope, key FileKey) {
	v.known = 0
	_, e := v.plan.cache.locate(&id, &key)
	for i := 0; e != nil && i < min(len(v.wanted), MaxWanted); i++ {
		v.wanted[i].Generation = v.standIn[i].Generation()
		if lookupVote(e, &v.wanted[i], &v.got[i]) {
			v.known |= 1 << i
		}
	}
}

// Settle returns the policy's verdict on f, if what is known is enough for it,
// together with what scanners can say at once; see [scanner.EvaluateInstant]. It
// neither blocks nor allocates.
func (v *View) Settle(f *scanner.File) (verdict scanner.Verdict, settled bool) {
	return scanner.EvaluateInstant(v.stages, f)
}

// Evaluate scans f with those scanners whose verdict is not known; see
// [scanner.Evaluate].
func (v *View) Evaluate(ctx context.Context, f *scanner.File) scanner.Result {
	return scanner.Evaluate(ctx, v.stages, f)
}

// Keep keeps what Evaluate learned; see [Cache.Keep] for what the caller must
// have proof of.
func (v *View) Keep(id Scope, key FileKey, size int64, r scanner.Result) int {
	verdicts := make([]Kept, 0, len(r.Reports))
	for i := range min(len(r.Reports), len(v.wanted)) { // reports come in the order of the stages
		if v.knows(i) {
			continue
		}
		verdicts = append(verdicts, Kept{
			Scanner: v.plan.scanners[i], Current: v.standIn[i].Generation(), Verdict: r.Reports[i].Verdict,
		})
	}
	return v.plan.cache.Keep(id, key, size, verdicts)
}

// Scanned returns how many of r's reports are a scanner's own, and not from memory.
func (v *View) Scanned(r scanner.Result) (n int) {
	for i := range r.Reports {
		if !v.knows(i) {
			n++
		}
	}
	return n
}

// Known reports whether anything is known of the file that was looked at last.
func (v *View) Known() bool { return v.known != 0 }

// Unknown returns the names of the scanners whose verdict is not known.
func (v *View) Unknown() []string {
	var names []string
	all := 0
	for _, stage := range v.plan.stages {
		for _, named := range stage.Scanners {
			if !v.knows(all) {
				names = append(names, named.Name)
			}
			all++
		}
	}
	return names
}

// Reports returns what is known, for records: one report per scanner.
func (v *View) Reports() []scanner.Report {
	var reports []scanner.Report
	all := 0
	for _, stage := range v.plan.stages {
		for _, named := range stage.Scanners {
			if v.knows(all) {
				reports = append(reports, scanner.Report{Name: named.Name, Verdict: v.got[all]})
			}
			all++
		}
	}
	return reports
}

func (v *View) knows(i int) bool { return i < MaxWanted && v.known&(1<<i) != 0 }

// A standIn answers for a scanner whose verdict is known.
type standIn struct {
	scanner.Scanner
	view  *View
	index int
}

// Scan returns the known verdict, or scans.
func (s *standIn) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	if s.view.knows(s.index) {
		return s.view.got[s.index]
	}
	return s.Scanner.Scan(ctx, f)
}

// ScanInstant returns the known verdict, or asks a scanner that can be asked.
func (s *standIn) ScanInstant(f *scanner.File) (v scanner.Verdict, known bool) {
	if s.view.knows(s.index) {
		return s.view.got[s.index], true
	}
	if i, ok := s.Scanner.(scanner.Instant); ok {
		return i.ScanInstant(f)
	}
	return scanner.Verdict{}, false
}
