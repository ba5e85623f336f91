package guard

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hammerVariable makes a test binary a hammer: a process that changes files all the
// time ("writer") or opens them ("reader"). Its arguments are those of newHammer.
const hammerVariable = "ASSAY_TEST_HAMMER"

const (
	hammered = 64 // files are changed together
	again    = 6  // changes of each of them, before the next are taken
)

// A hammer works on the files from first to last of a directory. What they are like is
// on a board in shared memory: a word for each counts its changes, and is odd while it
// has bad content and nobody is changing it. An open that succeeds, and begins and ends
// while the word is the same and odd, was let in by what was known before.
type hammer struct {
	dir         string
	board       board
	first, last int
	rounds      int // for a writer
	hand        hand
	done, stale int
}

func newHammer(args []string) (*hammer, error) {
	if len(args) != 5 {
		return nil, errors.New("usage: DIR BOARD FIRST LAST ROUNDS")
	}
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[2+i]); err != nil {
			return nil, err
		}
	}
	b, err := openBoard(args[1])
	return &hammer{dir: args[0], board: b, first: n[0], last: n[1], rounds: n[2]}, err
}

// serveAsHammer runs the hammer if this process is to be one.
func serveAsHammer(out io.Writer) (served bool, err error) {
	role := os.Getenv(hammerVariable)
	if role == "" {
		return false, nil
	}
	h, err := newHammer(os.Args[1:])
	if err != nil {
		return true, err
	}
	work := h.write
	if role == "reader" {
		work = h.read
	}
	if reply := try(work); reply != "ok" {
		return true, fmt.Errorf("%s: file %s: %s", role, h.hand.path, reply)
	}
	_, err = fmt.Fprintln(out, h.done, h.stale)
	return true, err
}

// take takes a file in hand, and returns its path.
func (h *hammer) take(i int) string {
	h.hand.path = filepath.Join(h.dir, fmt.Sprint("file", i))
	return h.hand.path
}

// allowed opens a file and reports whether it was let in.
func (h *hammer) allowed(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return false
	case errors.Is(err, unix.EINTR):
		return h.allowed(path)
	}
	check(err)
	check(unix.Close(fd))
	return true
}

// read opens all files, again and again, until the board says that the writers are
// through.
func (h *hammer) read() {
	for h.board.word(0).Load() == 0 {
		for i := h.first; i < h.last; i++ {
			word := h.board.word(1 + i)
			before := word.Load()
			let := h.allowed(h.take(i))
			if before%2 == 1 && word.Load() == before {
				h.done++
				if let {
					h.stale++
				}
			}
		}
	}
}

// write changes the files, some at a time.
func (h *hammer) write() {
	for from := h.first; h.done < h.rounds && from+hammered <= h.last; from += hammered {
		for round := range again {
			if round > 0 {
				h.each(from, h.mend)
				<-time.After(settled + settled/4) // so that their verdicts are kept
			}
			for range 3 { // scanned, known, marked
				h.each(from, func(int) {
					if !h.allowed(h.hand.path) {
						panic(errors.New("a clean file is denied"))
					}
				})
			}
			h.each(from, func(i int) { h.spoil(i, (round+i)%len(spoilers())) })
			h.each(from, func(i int) { h.judge(i) })
		}
	}
}

func (h *hammer) each(from int, do func(i int)) {
	for i := from; i < from+hammered; i++ {
		h.take(i)
		do(i)
	}
}

// mend gives a file good content. It is denied to whoever opens it, so it is made
// empty first.
func (h *hammer) mend(i int) {
	h.board.word(1 + i).Add(1)
	h.hand.drop()
	check(unix.Truncate(h.hand.path, 0))
	h.hand.write(h.hand.open(h.hand.path, unix.O_WRONLY), []byte("content"))
	h.hand.drop()
}

// spoil gives a file bad content, and says so when it is there.
func (h *hammer) spoil(i, how int) {
	spoilers()[how](&h.hand)
	h.hand.drop()
	h.board.word(1 + i).Add(1)
}

// judge opens a bad file.
func (h *hammer) judge(int) {
	h.done++
	if h.allowed(h.hand.path) {
		h.stale++
	}
}

// spoilers are what the hammer has of changes: each makes "content" "malware".
func spoilers() []func(h *hand) {
	small := func(h *hand) []byte {
		fd := h.open(h.path, unix.O_RDWR)
		m, err := unix.Mmap(fd, 0, len(needle), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		check(err)
		h.maps = append(h.maps, m)
		return m
	}
	return []func(h *hand){
		func(h *hand) { h.write(h.open(h.path, unix.O_WRONLY), []byte(needle)) },
		func(h *hand) { copy(small(h), needle) },
		func(h *hand) {
			m := small(h)
			h.close()
			if m[0] != 'c' {
				panic(fmt.Errorf("the mapping has %q", m))
			}
			copy(m, needle)
		},
		func(h *hand) { h.write(h.open(h.path, unix.O_WRONLY|unix.O_TRUNC), []byte(needle)) },
		func(h *hand) { h.write(h.open(h.path, unix.O_WRONLY|unix.O_APPEND), []byte(needle)) },
		func(h *hand) {
			h.write(h.open(h.other(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL), []byte(needle))
			check(unix.Rename(h.other(), h.path))
		},
	}
}
