package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	filesPerLayer = 64
	// maxContainers bounds the containers that the openers are spread over.
	maxContainers = 100
)

// benchOpens measures one open and close with 1, 4, 16, 64 and 200 openers,
// spread over as many containers, up to 100.
func (b *bench) benchOpens() error {
	opener, err := compile(b.scratch, "opener")
	if err != nil {
		return err
	}
	listeners, err := b.listeners()
	if err != nil {
		return err
	}
	t := b.report.add("opens", "open and close of a small file on an overlay, by number of openers and containers",
		fmt.Sprintf("µs, %d rounds of %d opens", b.rounds, b.opens))
	for _, openers := range []int{1, 4, 16, 64, 200} {
		mounts, err := mountOverlays(b.scratch, min(openers, maxContainers))
		if err != nil {
			return err
		}
		group := fmt.Sprintf("%d/%d ", openers, len(mounts))
		for range b.rounds {
			for _, l := range listeners {
				us, err := l.measure(opener, mounts, openers, max(1, b.opens/openers))
				if err != nil {
					return fmt.Errorf("%s with %d openers: %w", l.name, openers, err)
				}
				t.sample(group+l.name, us)
			}
		}
		t.compare(group+"instant", group+"floor", nil)
		t.compare(group+"cached", group+"floor", atMost(1.5))
		for _, m := range mounts {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	t.note("floor: bench/floor/floor.c; instant: the guard in a process with a scanner that answers at once, the ceiling of what the agent can do;")
	t.note("cached: assayd, a scanner that has to read files, verdicts known, kernelMarks off")
	t.print()
	return nil
}

// listeners returns who watches while opens are measured.
func (b *bench) listeners() ([]listener, error) {
	floor, err := compile(b.scratch, "floor")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	scanner, err := b.hashScanner()
	if err != nil {
		return nil, err
	}
	program := func(name string, args ...string) func([]string) (func(), error) {
		return func(mounts []string) (func(), error) {
			return startReady(context.Background(), name, append(args, mounts...)...)
		}
	}
	return []listener{
		{name: "unguarded", start: func([]string) (func(), error) { return func() {}, nil }},
		{name: "floor", start: program(floor)},
		{name: "instant", start: program(self, "agent")},
		{name: "cached", start: func(mounts []string) (func(), error) { return b.guardAll(scanner, mounts) }},
	}, nil
}

// guardAll starts assayd and makes each mount the root of a container.
func (b *bench) guardAll(scanner string, mounts []string) (func(), error) {
	var end stack
	a, err := b.newAssayd(guardConfig{scanner: scanner, kernelMarks: "off"})
	if err != nil {
		return nil, err
	}
	end.push(a.stop)
	for i, m := range mounts {
		init, err := initProcess()
		if err != nil {
			end.run()
			return nil, err
		}
		end.push(func() {
			_ = init.Process.Kill()
			_ = init.Wait()
		})
		if err := a.announce(fmt.Sprint("bench", i), init.Process.Pid, m); err != nil {
			end.run()
			return nil, err
		}
	}
	return end.run, nil
}

// compile builds one of the C programs and returns its path.
func compile(scratch, name string) (string, error) {
	program := filepath.Join(scratch, name)
	build := exec.Command("cc", "-O2", "-o", program, filepath.Join("bench", name, name+".c"), "-lpthread")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build %s (needs cc, and the project's root as the working directory): %w", name, err)
	}
	return program, nil
}

// mountOverlays mounts n overlays over one lower directory.
func mountOverlays(scratch string, n int) ([]string, error) {
	base, err := os.MkdirTemp(scratch, "overlays-")
	if err != nil {
		return nil, err
	}
	lower := filepath.Join(base, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return nil, err
	}
	for i := range filesPerLayer {
		if err := os.WriteFile(filepath.Join(lower, strconv.Itoa(i)), []byte("content"), 0o644); err != nil {
			return nil, err
		}
	}
	var mounts []string
	for i := range n {
		merged := filepath.Join(base, fmt.Sprint("merged", i))
		upper, work := filepath.Join(base, fmt.Sprint("upper", i)), filepath.Join(base, fmt.Sprint("work", i))
		for _, dir := range []string{merged, upper, work} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return nil, err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
		if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
			return nil, fmt.Errorf("mount an overlay: %w", err)
		}
		mounts = append(mounts, merged)
	}
	return mounts, nil
}

// A listener watches overlays while opens are measured, until it is stopped.
type listener struct {
	name  string
	start func(mounts []string) (stop func(), err error)
}

// measure returns the microseconds of one open.
func (l *listener) measure(opener string, mounts []string, openers, each int) (us float64, err error) {
	stop, err := l.start(mounts)
	if err != nil {
		return 0, err
	}
	defer stop()
	start, gate, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer start.Close()
	cmds := make([]*exec.Cmd, openers)
	for i := range cmds {
		file := filepath.Join(mounts[i%len(mounts)], strconv.Itoa(i%filesPerLayer))
		cmds[i] = exec.Command(opener, file, strconv.Itoa(each))
		cmds[i].Stdin, cmds[i].Stderr = start, os.Stderr
		cmds[i].SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		ready, err := cmds[i].StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmds[i].Start(); err != nil {
			return 0, err
		}
		if err := await(ready, "ready"); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	_ = gate.Close() // all openers see the end of the pipe at once
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			return 0, fmt.Errorf("an opener failed: %w", err)
		}
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3 / float64(openers*each), nil
}

// await reads a line and checks that it is word.
func await(r io.Reader, word string) error {
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return fmt.Errorf("instead of %q: %w", word, err)
	}
	if strings.TrimSpace(line) != word {
		return fmt.Errorf("said %q instead of %q", line, word)
	}
	return nil
}
