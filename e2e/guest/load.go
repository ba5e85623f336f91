package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A loadPlan is what `guest load` was told: package fault's Load, as flags.
type loadPlan struct {
	worker    int // number of this process; -1 for the parent of all
	processes int
	opens     int
	pause     time.Duration
	logs      string
	work      string
	clean     string
	bad       string
	kinds     string
	first     string // the two halves of bad content
	second    string
}

func parseLoad(args []string) (loadPlan, error) {
	var p loadPlan
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	f.IntVar(&p.worker, "worker", -1, "`number` of this process; the parent has none")
	f.IntVar(&p.processes, "processes", 1, "how many processes open files")
	f.IntVar(&p.opens, "opens", 0, "opens of each process; 0: until the file stop is there")
	f.DurationVar(&p.pause, "pause", 0, "between two opens")
	f.StringVar(&p.logs, "logs", "/mnt", "`directory` of the files go and stop, and of each process's log")
	f.StringVar(&p.work, "work", "/tmp", "`directory` for files of this program's own")
	f.StringVar(&p.clean, "clean", "", "known clean files")
	f.StringVar(&p.bad, "bad", "", "known bad files")
	f.StringVar(&p.kinds, "kinds", "clean", "kinds of opens, in this order, again and again")
	f.StringVar(&p.first, "first", "", "first half of bad content")
	f.StringVar(&p.second, "second", "", "second half of bad content")
	return p, f.Parse(args)
}

// load starts the processes of a load and waits for all of them. A process that is
// killed is not started again.
func load(args []string) error {
	p, err := parseLoad(args)
	if err != nil {
		return err
	}
	if p.worker >= 0 {
		w := &worker{loadPlan: p, content: []byte(p.first + p.second)}
		return w.run()
	}
	var all sync.WaitGroup
	for i := range p.processes {
		var cmd *exec.Cmd
		err := insist(func() error {
			cmd = exec.Command("/bin/guest", append([]string{"load", "-worker", strconv.Itoa(i)}, args...)...)
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
			cmd.Stderr = os.Stderr
			return cmd.Start()
		})
		if err != nil {
			return err
		}
		all.Go(func() { _ = cmd.Wait() }) // its log says how far it came
	}
	all.Wait()
	return nil
}

// insist repeats what is refused: a gate under load refuses some of what a load needs
// before it is ready.
func insist(what func() error) error {
	err := what()
	for end := time.Now().Add(30 * time.Second); errors.Is(err, unix.EPERM) && time.Now().Before(end); err = what() {
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // nothing tells when the gate has recovered
	}
	return err
}

// A worker is one process of a load. What it sees goes into its log, line by line,
// each in one write(2), so that the host can read it at any moment:
//
//	p PID                                       it is ready
//	b KIND START                                it is about to open
//	e KIND START END WANT ERRNO BYTES BADBYTES  it has opened and read, or was refused
//
// Times are nanoseconds of CLOCK_MONOTONIC, which the host shares. WANT is clean or
// bad; BADBYTES is how much was read of something that has the bad content in it.
type worker struct {
	loadPlan

	content []byte // bad content
	log     *os.File
	own     *os.File // of the kind rewritten: written while it is open
	done    int
	buf     []byte
}

func (w *worker) run() (err error) {
	err = insist(func() error {
		w.log, err = os.OpenFile(filepath.Join(w.logs, strconv.Itoa(w.worker)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		return err
	})
	if err != nil {
		return err
	}
	w.buf = make([]byte, 64<<10)
	if strings.Contains(w.kinds, "rewritten") {
		err = insist(func() error {
			w.own, err = os.OpenFile(w.ownPath(), os.O_CREATE|os.O_RDWR, 0o644)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := w.say("p %d\n", os.Getpid()); err != nil {
		return err
	}
	for !w.told("go") {
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // the host tells by a file, which must not be opened
	}
	kinds := strings.Split(w.kinds, ",")
	for i := w.worker; (w.opens == 0 || w.done < w.opens) && !w.told("stop"); i++ {
		if err := w.open(kinds[i%len(kinds)], i/len(kinds)); err != nil {
			return err
		}
		time.Sleep(w.pause) //nolint:forbidigo // it is a rate
	}
	return nil
}

// told reports whether a file is there. It opens nothing.
func (w *worker) told(name string) bool {
	return unix.Access(filepath.Join(w.logs, name), unix.F_OK) == nil
}

func (w *worker) say(format string, args ...any) error {
	_, err := fmt.Fprintf(w.log, format, args...)
	return err
}

func (w *worker) ownPath() string { return filepath.Join(w.work, fmt.Sprintf("own-%d", w.worker)) }

// open makes one open of a kind; round is how many of it there were before.
func (w *worker) open(kind string, round int) error {
	pick := func(list string) string {
		files := strings.Split(list, ",")
		return files[(round+w.worker)%len(files)]
	}
	want := "clean"
	if kind == "bad" || kind != "clean" && round%2 == 1 {
		want = "bad"
	}
	switch kind {
	case "clean":
		return w.try(kind, want, pick(w.clean))
	case "bad":
		return w.try(kind, want, pick(w.bad))
	case "rewritten":
		return w.rewritten(kind, want, round)
	case "fresh":
		return w.fresh(kind, want, round)
	default:
		return fmt.Errorf("unknown kind %q", kind)
	}
}

// text returns content that is wanted to be clean or bad.
func (w *worker) text(want string, round int) []byte {
	if want == "bad" {
		return w.content
	}
	// As long as bad content: a file's size is not to tell what it is.
	text := fmt.Sprintf("clean %d %d ", w.worker, round)
	return []byte((text + strings.Repeat(".", len(w.content)))[:len(w.content)])
}

// rewritten changes a file in place, through a descriptor that stays open.
func (w *worker) rewritten(kind, want string, round int) error {
	if _, err := w.own.WriteAt(w.text(want, round), 0); err != nil {
		return err
	}
	return w.try(kind, want, w.ownPath())
}

// fresh makes a file under another name, renames it to where one was before, and
// opens that.
func (w *worker) fresh(kind, want string, round int) error {
	path := filepath.Join(w.work, fmt.Sprintf("fresh-%d", w.worker))
	fd, err := w.timed("make", "clean", path+".new", unix.O_CREAT|unix.O_WRONLY)
	if err != nil {
		return nil //nolint:nilerr // it is in the log
	}
	_, err = unix.Write(fd, w.text(want, round))
	if err = errors.Join(err, unix.Close(fd), os.Rename(path+".new", path)); err != nil {
		return err
	}
	return w.try(kind, want, path)
}

// try opens a file and reads it to its end.
func (w *worker) try(kind, want, path string) error {
	fd, err := w.timed(kind, want, path, unix.O_RDONLY)
	if err != nil {
		return nil //nolint:nilerr // it is in the log
	}
	return unix.Close(fd)
}

// timed opens a file, reads what it is open for, and writes both lines of it.
func (w *worker) timed(kind, want, path string, flags int) (int, error) {
	w.done++
	start := now()
	if err := w.say("b %s %d\n", kind, start); err != nil {
		fail(err)
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	}
	end := now()
	var errno unix.Errno
	errors.As(err, &errno)
	n, bad := 0, 0
	if err == nil && flags&unix.O_WRONLY == 0 {
		n = w.read(fd)
		if bytes.Contains(w.buf[:n], w.content) {
			bad = n
		}
	}
	if e := w.say("e %s %d %d %s %d %d %d\n", kind, start, end, want, int(errno), n, bad); e != nil {
		fail(e)
	}
	return fd, err
}

// read fills the buffer with a file's beginning, and returns how much it has.
func (w *worker) read(fd int) int {
	n := 0
	for n < len(w.buf) {
		m, err := unix.Read(fd, w.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			break
		}
		n += m
	}
	return n
}

// now returns nanoseconds of CLOCK_MONOTONIC.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		fail(err)
	}
	return t.Nano()
}
