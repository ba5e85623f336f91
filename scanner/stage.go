package scanner

// A Named scanner is a scanner under the name that the configuration gave it.
type Named struct {
	Name string
	Scanner
}

// A Decide rule says how many scanners of a stage must accept a file.
// The zero value is All.
type Decide struct {
	// Quorum is the number of Clean verdicts needed; 0 means every scanner of
	// the stage (the rule "all"), 1 is the rule "any".
	Quorum int
}

// A Stage is a set of scanners that run in parallel on one file.
type Stage struct {
	Scanners []Named
	Decide   Decide
}

// A Report is what one scanner contributed to a result.
type Report struct {
	Name       string
	Verdict    Verdict
	Micros     int64 // time the scan took, in microseconds
	NotAwaited bool  // the outcome was settled before this scanner finished
}

// A Result is what all stages of a policy say about one file.
type Result struct {
	Verdict Verdict  // combined; see Evaluate
	Reports []Report // one per scanner that was started, in stage order
}
