// Command bench measures what the gate costs, in one run against its floor and
// against others who do the same: the time of an open, unguarded, under a listener
// that only allows, and under the agent in each of its states; a first pass over a
// container's files against clamdscan; writers, builds and container starts. It
// prints medians and ratios; absolute times are the machine's, ratios are what to
// compare. docs/benchmarks.md says how it measures and how to read it.
//
// It runs in mount and pid namespaces of its own, which end with it: so do its
// mounts and processes, however it ends. It needs root, cc, runc and clamd.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scratchEnv names the scratch directory to the process in the namespaces.
const scratchEnv = "ASSAY_BENCH_SCRATCH"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	rounds     int
	slowRounds int
	opens      int
	starts     int
	builds     int
	files      int
	streams    int
	bin        string
	json       string
	database   string
	only       string
}

func parse() (s settings, rest []string) {
	flag.IntVar(&s.rounds, "rounds", 7, "measure each variant `N` times, in turn")
	flag.IntVar(&s.slowRounds, "slow-rounds", 3, "the same for what takes seconds: first passes, peers")
	flag.IntVar(&s.opens, "opens", 40000, "opens in each measurement with many openers, over all of them")
	flag.IntVar(&s.starts, "starts", 40, "container starts with and without the hook")
	flag.IntVar(&s.builds, "builds", 2, "Go builds of each variant")
	flag.IntVar(&s.files, "files", 2000, "files in the image")
	flag.IntVar(&s.streams, "streams", 4, "parallel streams of first passes")
	flag.StringVar(&s.bin, "bin", "bin", "directory of assayd and assay-hook")
	flag.StringVar(&s.json, "json", "", "write the results to `FILE` as well")
	flag.StringVar(&s.database, "database", "", "`DIR` of signatures for clamd, instead of a single made-up one")
	flag.StringVar(&s.only, "only", "", "only these parts, separated by commas: "+strings.Join(partNames(), ", "))
	flag.Parse()
	return s, flag.Args()
}

// A part is a measurement that can be chosen with -only.
type part struct {
	name string
	run  func(b *bench) error
}

func parts() []part {
	return []part{
		{"opens", (*bench).benchOpens},
		{"known", (*bench).benchKnown},
		{"writers", (*bench).benchWriters},
		{"first", (*bench).benchFirst},
		{"peers", (*bench).benchPeers},
		{"build", (*bench).benchBuild},
		{"starts", (*bench).benchStarts},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func run() error {
	s, rest := parse()
	if len(rest) > 0 { // the roles that this program plays for itself
		switch rest[0] {
		case "agent":
			return agent(rest[1:])
		case "fapolicyd":
			return runFapolicyd(rest[1:])
		}
		return fmt.Errorf("unexpected argument %q", rest[0])
	}
	if err := s.check(); err != nil {
		return err
	}
	scratch := os.Getenv(scratchEnv)
	if scratch == "" {
		return supervise()
	}
	return measure(s, scratch)
}

func (s *settings) check() error {
	if os.Geteuid() != 0 {
		return errors.New("permission marks need root")
	}
	for _, n := range []int{s.rounds, s.slowRounds, s.opens / 200, s.starts, s.builds, s.files / 100, s.streams} {
		if n < 1 {
			return errors.New("at least 1 round, 200 opens, 1 start, 1 build, 100 files and 1 stream")
		}
	}
	for _, name := range s.chosen() {
		if !slices.Contains(partNames(), name) {
			return fmt.Errorf("-only: %q is none of %s", name, strings.Join(partNames(), ", "))
		}
	}
	bin, err := filepath.Abs(s.bin)
	s.bin = bin
	return err
}

// chosen returns the names of the parts to run.
func (s *settings) chosen() []string {
	if s.only == "" {
		return partNames()
	}
	return strings.Split(s.only, ",")
}

// A bench is one run.
type bench struct {
	settings
	scratch string
	report  *report
	clamd   *clamd // nil until it is needed
	image   *image // nil until it is needed
	extra   []string
}

// measure runs the chosen parts, in namespaces of their own.
func measure(s settings, scratch string) error {
	if err := ownMounts(); err != nil {
		return err
	}
	m, err := describeMachine()
	if err != nil {
		return err
	}
	b := &bench{settings: s, scratch: scratch, report: newReport(m, &s)}
	if err := b.probeConfiguration(); err != nil {
		return err
	}
	defer b.close()
	for _, p := range parts() {
		if !slices.Contains(s.chosen(), p.name) {
			continue
		}
		began := time.Now()
		if err := p.run(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("(%s took %.0f s)\n\n", p.name, time.Since(began).Seconds())
	}
	if err := b.report.finish(); err != nil {
		return err
	}
	return b.report.write(s.json)
}

func (b *bench) close() {
	if b.clamd != nil {
		b.clamd.stop()
	}
}
