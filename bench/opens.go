package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
func benchOpens(scratch string, rounds, opens int) error {
	floor, err := compile(scratch, "floor")
	if err != nil {
		return err
	}
	opener, err := compile(scratch, "opener")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	listeners := []listener{
		{name: "unguarded"},
		{name: "floor", command: []string{floor}},
		{name: "agent", command: []string{self, "agent"}},
	}
	fmt.Printf("open and close of a small file on an overlay, µs, median of %d rounds of %d opens\n", rounds, opens)
	fmt.Printf("%8s %11s %10s %8s %8s %14s\n", "openers", "containers", "unguarded", "floor", "agent", "agent / floor")
	for _, openers := range []int{1, 4, 16, 64, 200} {
		mounts, err := mountOverlays(scratch, min(openers, maxContainers))
		if err != nil {
			return err
		}
		times := make(map[string][]float64)
		var ratios []float64
		for range rounds {
			for _, l := range listeners {
				us, err := l.measure(opener, mounts, openers, opens/openers)
				if err != nil {
					return fmt.Errorf("%s with %d openers: %w", l.name, openers, err)
				}
				times[l.name] = append(times[l.name], us)
			}
			last := len(times["floor"]) - 1
			ratios = append(ratios, times["agent"][last]/times["floor"][last])
		}
		fmt.Printf("%8d %11d %10.1f %8.1f %8.1f %7.2f (%.2f–%.2f)\n", openers, len(mounts), median(times["unguarded"]),
			median(times["floor"]), median(times["agent"]), median(ratios), slices.Min(ratios), slices.Max(ratios))
		for _, m := range mounts {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	fmt.Println("\nfloor: bench/floor/floor.c; agent: the guard with an always-clean scanner in process; ratios pair by pair")
	return nil
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

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
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

// A listener watches overlays while opens are measured; without a command,
// nobody does.
type listener struct {
	name    string
	command []string
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

// start starts the listener on mounts and returns what ends it.
func (l *listener) start(mounts []string) (stop func(), err error) {
	if l.command == nil {
		return func() {}, nil
	}
	c := exec.Command(l.command[0], append(l.command[1:], mounts...)...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	if err := await(out, "ready"); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
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
