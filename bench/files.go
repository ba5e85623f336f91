package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// warmPasses come before what is measured of known files: the agent marks only
	// what it has seen more than once.
	warmPasses = 4
	// markPatience bounds the time in which no more files get marked.
	markPatience = 12 * time.Second
	// enough is how long, in microseconds, the passes of one measurement take together.
	enough = 60_000
	// mostPasses bounds the passes of one measurement.
	mostPasses = 15
)

// benchFirst measures the first pass over the files of an image that nobody has
// seen, with a fresh agent each time, against clamdscan on the same files with the
// same clamd.
func (b *bench) benchFirst() error {
	if err := b.needClamd(); err != nil {
		return err
	}
	if _, err := b.needImage(); err != nil {
		return err
	}
	t := b.report.add("first", fmt.Sprintf("first pass over %d files of %d kB, verdicts by clamd: open, read, close", b.files, fileSize/1000),
		fmt.Sprintf("µs per file, %d rounds", b.slowRounds))
	streams := []int{1, b.streams}
	for range b.slowRounds {
		for _, n := range streams {
			if err := b.scanByHand(t, n, false); err != nil {
				return err
			}
			if err := b.firstPass(t, n); err != nil {
				return err
			}
		}
		if err := b.scanByHand(t, 1, true); err != nil {
			return err
		}
	}
	for _, n := range streams {
		t.compare(key("first pass", n), key("clamdscan", n), atMost(1.15))
	}
	t.note("first pass: fresh agent, fresh state, kernelMarks off; clamdscan: --fdpass, one process a stream; -m: clamd's threads at will")
	t.print()
	return nil
}

func key(what string, streams int) string {
	if streams == 1 {
		return what + ", 1 stream"
	}
	return fmt.Sprintf("%s, %d streams", what, streams)
}

// scanByHand has clamdscan scan the files of a new, unguarded container.
func (b *bench) scanByHand(t *table, streams int, multi bool) error {
	c, err := b.newContainer(b.image.layers...)
	if err != nil {
		return err
	}
	defer c.close()
	lists, err := b.lists(c.root, b.image.names, streams)
	if err != nil {
		return err
	}
	us, err := b.clamd.scan(lists, b.files, multi)
	if err != nil {
		return err
	}
	if multi {
		t.sample("clamdscan -m", us)
	} else {
		t.sample(key("clamdscan", streams), us)
	}
	return nil
}

// firstPass reads the files of a new container under a new agent.
func (b *bench) firstPass(t *table, streams int) error {
	a, err := b.newAssayd(guardConfig{scanner: b.clamdScanner(), kernelMarks: "off"})
	if err != nil {
		return err
	}
	defer a.stop()
	c, err := b.newContainer(b.image.layers...)
	if err != nil {
		return err
	}
	defer c.close()
	if err := a.guard(c); err != nil {
		return err
	}
	us, err := b.readOnce(c, streams)
	if err != nil {
		return err
	}
	t.sample(key("first pass", streams), us)
	return a.sound()
}

// A watched is a container whose files are known to whoever watches it.
type watched struct {
	key       string
	container *container
	list      string
	passes    map[string]int // by how files are visited
}

// benchKnown measures files that whoever watches has seen before, each watcher with
// a container of its own over the same layers, all of them at once.
func (b *bench) benchKnown() error {
	if err := b.needClamd(); err != nil {
		return err
	}
	if _, err := b.needImage(); err != nil {
		return err
	}
	var all []*watched
	var end stack
	defer end.run()
	for _, w := range []struct {
		key   string
		watch func(*container, *stack) error
	}{
		{"unguarded", func(*container, *stack) error { return nil }},
		{"floor", b.watchByFloor},
		{"cached", func(c *container, s *stack) error { return b.watchByAgent(c, s, guardConfig{kernelMarks: "off"}) }},
		{"no keeper", func(c *container, s *stack) error {
			return b.watchByAgent(c, s, guardConfig{kernelMarks: "off", alone: true})
		}},
		{"kernel-marked", func(c *container, s *stack) error { return b.watchByAgent(c, s, guardConfig{kernelMarks: "layers"}) }},
	} {
		c, err := b.newContainer(b.image.layers...)
		if err != nil {
			return err
		}
		end.push(c.close)
		if err := w.watch(c, &end); err != nil {
			return fmt.Errorf("%s: %w", w.key, err)
		}
		known, err := b.warm(w.key, c)
		if err != nil {
			return fmt.Errorf("%s: %w", w.key, err)
		}
		all = append(all, known)
	}
	note, err := b.awaitMarks(end.agent, all[len(all)-1].container)
	if err != nil {
		return err
	}
	if err := b.visitKnown(all, "open", "open and close", note); err != nil {
		return err
	}
	return b.visitKnown(all, "read", "open, read and close", note)
}

// awaitMarks visits the files of a container until all are marked, or no more get
// marked, and says how many are. The agent marks at a bounded rate, and does not ask
// for a file again for some seconds.
func (b *bench) awaitMarks(a *assayd, c *container) (note string, err error) {
	most, since := 0, time.Now()
	for began := since; ; {
		marks, skipped, err := a.awaitMarks(b.files)
		if marks > most {
			most, since = marks, time.Now()
		}
		switch {
		case err != nil:
			return "", err
		case marks < 0:
			return "the agent tells of no kernel marks: what is called kernel-marked is answered", nil
		case marks >= b.files || time.Since(since) > markPatience:
			return fmt.Sprintf("%d kernel marks stood for %d files, after %.0f s of reading them over and over%s",
				marks, b.files, since.Sub(began).Seconds(), skipped), nil
		}
		if _, err := b.readOnce(c, 1); err != nil {
			return "", err
		}
	}
}

func (b *bench) visitKnown(all []*watched, how, title, note string) error {
	t := b.report.add("known-"+how, fmt.Sprintf("%s of one of %d known files", title, b.files),
		fmt.Sprintf("µs, %d rounds", b.rounds))
	for range b.rounds {
		for _, w := range all {
			us, err := b.readList(w.container.pid, w.list, visit{how, w.passes[how], 1})
			if err != nil {
				return fmt.Errorf("%s: %w", w.key, err)
			}
			t.sample(w.key, median(us))
		}
	}
	var most, marked *target
	if how == "open" {
		most, marked = atMost(1.5), atMost(1.25)
	}
	t.compare("floor", "unguarded", nil)
	t.compare("cached", "floor", most)
	t.compare("cached", "no keeper", nil)
	t.compare("kernel-marked", "unguarded", marked)
	t.note("%s", note)
	t.print()
	return nil
}

// warm visits the files often enough for them to be known, and finds out how many
// passes make a measurement.
func (b *bench) warm(name string, c *container) (*watched, error) {
	w := &watched{key: name, container: c, passes: map[string]int{}}
	var err error
	if w.list, err = b.list(c.root); err != nil {
		return nil, err
	}
	for _, how := range []string{"read", "open"} {
		us, err := b.readList(c.pid, w.list, visit{how, warmPasses / 2, 1})
		if err != nil {
			return nil, err
		}
		pass := us[len(us)-1] * float64(b.files)
		w.passes[how] = max(1, min(mostPasses, int(enough/pass)))
	}
	return w, nil
}

// A stack is what has to be ended, the last first.
type stack struct {
	ends  []func()
	agent *assayd // the last one that was started
}

func (s *stack) push(end func()) { s.ends = append(s.ends, end) }

func (s *stack) run() {
	for len(s.ends) > 0 {
		last := len(s.ends) - 1
		s.ends[last]()
		s.ends = s.ends[:last]
	}
}

func (b *bench) watchByAgent(c *container, s *stack, g guardConfig) error {
	g.scanner = b.clamdScanner()
	a, err := b.newAssayd(g)
	if err != nil {
		return err
	}
	s.push(a.stop)
	s.agent = a
	return a.guard(c)
}

func (b *bench) watchByFloor(c *container, s *stack) error {
	floor, err := compile(b.scratch, "floor")
	if err != nil {
		return err
	}
	stop, err := startReady(context.Background(), floor, c.root)
	if err != nil {
		return err
	}
	s.push(stop)
	return nil
}

// startReady starts a program that says "ready", and returns what ends it.
func startReady(ctx context.Context, program string, args ...string) (stop func(), err error) {
	p := exec.CommandContext(ctx, program, args...)
	p.Stderr = os.Stderr
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	if err := await(out, "ready"); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}
