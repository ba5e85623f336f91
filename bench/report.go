package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// A machine is where it was measured.
type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	// Load is the one-minute load average before and after.
	Load []float64 `json:"load"`
}

// A report is everything that was measured, as -json writes it.
type report struct {
	Machine  machine  `json:"machine"`
	Settings string   `json:"settings"`
	Tables   []*table `json:"tables"`
	Missing  []string `json:"missing"` // what could not be measured, and why
}

// A table is what was measured side by side, in the same rounds.
type table struct {
	Name  string   `json:"name"`
	Title string   `json:"title"`
	Unit  string   `json:"unit"`
	Rows  []*row   `json:"rows"`
	Notes []string `json:"notes,omitempty"`
	// Counts are numbers that are no times.
	Counts map[string]uint64 `json:"counts,omitempty"`
}

// A row is one variant.
type row struct {
	Key     string    `json:"key"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"` // one a round
	Ratios  []ratio   `json:"ratios,omitempty"`
	Target  *target   `json:"target,omitempty"` // of the median
}

// A ratio compares a row with another one, round by round.
type ratio struct {
	To     string  `json:"to"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Target *target `json:"target,omitempty"`
}

// A target is what a ratio, or the median of a row, should be.
type target struct {
	Most  float64 `json:"most,omitempty"`
	Least float64 `json:"least,omitempty"`
	Met   bool    `json:"met"`
}

func atMost(limit float64) *target { return &target{Most: limit} }

func atLeast(limit float64) *target { return &target{Least: limit} }

func (t *target) judge(value float64) {
	if t != nil {
		t.Met = (t.Most == 0 || value <= t.Most) && value >= t.Least
	}
}

func (t *target) String() string {
	if t == nil {
		return ""
	}
	verdict := "MISSED"
	if t.Met {
		verdict = "met"
	}
	if t.Most > 0 {
		return fmt.Sprintf("<= %g %s", t.Most, verdict)
	}
	return fmt.Sprintf(">= %g %s", t.Least, verdict)
}

func newReport(m machine, s *settings) *report {
	r := &report{
		Machine: m, Missing: []string{},
		Settings: fmt.Sprintf("rounds %d, slow rounds %d, files %d, streams %d", s.rounds, s.slowRounds, s.files, s.streams),
	}
	fmt.Printf("machine: %s, %d CPUs, Linux %s, load %.2f\n\n", m.CPU, m.CPUs, m.Kernel, m.Load[0])
	return r
}

// load returns the one-minute load average.
func load() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	var now float64
	_, err = fmt.Sscan(string(text), &now)
	return now, err
}

// finish notes the load at the end. Above the number of CPUs, the times are those of
// a machine that did other work.
func (r *report) finish() error {
	after, err := load()
	if err != nil {
		return err
	}
	r.Machine.Load = append(r.Machine.Load, after)
	fmt.Printf("load %.2f before, %.2f after\n", r.Machine.Load[0], after)
	if r.Machine.Load[0] > float64(r.Machine.CPUs) {
		fmt.Println("the machine did other work: don't believe the times, and the ratios only where they are far apart")
	}
	return nil
}

func (r *report) add(name, title, unit string) *table {
	t := &table{Name: name, Title: title, Unit: unit}
	r.Tables = append(r.Tables, t)
	return t
}

// miss says what could not be measured, and why.
func (r *report) miss(what string, why error) {
	line := fmt.Sprintf("%s: not measured: %v", what, why)
	r.Missing = append(r.Missing, line)
	fmt.Println(line)
}

// write writes the report to a file, unless the name is empty.
func (r *report) write(name string) error {
	if name == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(text, '\n'), 0o644)
}

// row returns the row of a key, a new one if need be.
func (t *table) row(key string) *row {
	for _, r := range t.Rows {
		if r.Key == key {
			return r
		}
	}
	r := &row{Key: key}
	t.Rows = append(t.Rows, r)
	return r
}

// sample adds one round's value to a row.
func (t *table) sample(key string, value float64) {
	r := t.row(key)
	r.Samples = append(r.Samples, value)
	r.Median, r.Min, r.Max = median(r.Samples), slices.Min(r.Samples), slices.Max(r.Samples)
}

// compare adds the ratio of two rows, computed round by round. It is nothing if
// one of them was not measured in every round.
func (t *table) compare(key, to string, want *target) {
	a, b := t.row(key), t.row(to)
	if len(a.Samples) == 0 || len(a.Samples) != len(b.Samples) {
		return
	}
	var values []float64
	for i := range a.Samples {
		values = append(values, a.Samples[i]/b.Samples[i])
	}
	c := ratio{To: to, Median: median(values), Min: slices.Min(values), Max: slices.Max(values), Target: want}
	want.judge(c.Median)
	a.Ratios = append(a.Ratios, c)
}

// note adds a line below the table.
func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// print shows the table to people.
func (t *table) print() {
	t.Rows = slices.DeleteFunc(t.Rows, func(r *row) bool { return len(r.Samples) == 0 })
	fmt.Printf("%s, %s\n", t.Title, t.Unit)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  variant\tmedian\tmin–max\tratio (min–max)\tto\ttarget\t")
	for _, r := range t.Rows {
		fmt.Fprintf(w, "  %s\t%s\t%s–%s\t", r.Key, digits(r.Median), digits(r.Min), digits(r.Max))
		if len(r.Ratios) == 0 || r.Target != nil {
			fmt.Fprintf(w, "\t\t%s\t\n", r.Target)
		}
		for i, c := range r.Ratios {
			if i > 0 || r.Target != nil {
				fmt.Fprint(w, "\t\t\t")
			}
			fmt.Fprintf(w, "%s (%s–%s)\t%s\t%s\t\n", digits(c.Median), digits(c.Min), digits(c.Max), c.To, c.Target)
		}
	}
	_ = w.Flush()
	for _, n := range t.Notes {
		fmt.Println("  " + n)
	}
	fmt.Println()
}

// digits prints three digits, or more before the point.
func digits(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

func describeMachine() (machine, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return machine{}, err
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return machine{}, err
	}
	before, err := load()
	if err != nil {
		return machine{}, err
	}
	m := machine{CPU: "unknown CPU", CPUs: cpus.Count(), Kernel: unix.ByteSliceToString(u.Release[:]), Load: []float64{before}}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(info)) {
		if name, found := strings.CutPrefix(line, "model name"); found {
			m.CPU = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
			break
		}
	}
	return m, nil
}
