package guard

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// bindMount is the change that makes a mount.
const bindMount = "bind mount over it"

// goodContent is what [exactly] takes for clean: three blocks of a filesystem.
func goodContent() []byte {
	return append([]byte("content"), bytes.Repeat([]byte("x"), 3*blockSize-len("content"))...)
}

// badContent is as long.
func badContent() []byte { return append([]byte(needle), goodContent()[len(needle):]...) }

// A change prepares to change a file's content, and returns what changes it. What is
// prepared is there before the verdict.
type change func(h *hand) (act func())

// now is a change that needs no preparation.
func now(act func(h *hand)) change { return func(h *hand) func() { return func() { act(h) } } }

// early are the changes by somebody who is a writer before the verdict: it is never
// remembered.
func early(name string) bool { return strings.HasPrefix(name, "before: ") }

// changes are the ways to change what is read at a path.
func changes() map[string]change {
	all := map[string]change{}
	for _, some := range []map[string]change{writes(), mappings(), transfers(), ranges(), replacements(), disguises(), earlier()} {
		for name, one := range some {
			all[name] = one
		}
	}
	return all
}

// writing is a change by a write through a new descriptor.
func writing(flags int, write func(h *hand, fd int)) change {
	return now(func(h *hand) { write(h, h.open(h.path, flags)) })
}

func writes() map[string]change {
	return map[string]change{
		"write":  writing(unix.O_WRONLY, func(h *hand, fd int) { h.write(fd, badContent()) }),
		"append": writing(unix.O_WRONLY|unix.O_APPEND, func(h *hand, fd int) { h.write(fd, []byte(needle)) }),
		"pwrite": writing(unix.O_RDWR, func(_ *hand, fd int) {
			n, err := unix.Pwrite(fd, []byte(needle), 0)
			check(err, whole(n, len(needle)))
		}),
		"writev": writing(unix.O_WRONLY, func(_ *hand, fd int) {
			n, err := unix.Writev(fd, [][]byte{[]byte(needle[:3]), []byte(needle[3:])})
			check(err, whole(n, len(needle)))
		}),
		"pwritev2": writing(unix.O_WRONLY, func(_ *hand, fd int) {
			n, err := unix.Pwritev2(fd, [][]byte{[]byte(needle)}, 0, unix.RWF_SYNC)
			check(err, whole(n, len(needle)))
		}),
		"direct write": writing(unix.O_WRONLY|unix.O_DIRECT, func(h *hand, fd int) {
			m, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			check(err)
			h.maps = append(h.maps, m)
			copy(m, badContent())
			h.write(fd, m)
		}),
		"truncated open, then write": writing(unix.O_WRONLY|unix.O_TRUNC, func(h *hand, fd int) { h.write(fd, badContent()) }),
		"ftruncate":                  writing(unix.O_WRONLY, func(_ *hand, fd int) { check(unix.Ftruncate(fd, blockSize)) }),
		"ftruncate and back": writing(unix.O_WRONLY, func(_ *hand, fd int) {
			check(unix.Ftruncate(fd, blockSize), unix.Ftruncate(fd, 3*blockSize))
		}),
		"truncate":          now(func(h *hand) { check(unix.Truncate(h.path, blockSize)) }),
		"truncate, longer":  now(func(h *hand) { check(unix.Truncate(h.path, 4*blockSize)) }),
		"truncate and back": now(func(h *hand) { check(unix.Truncate(h.path, 0), unix.Truncate(h.path, 3*blockSize)) }),
		"write, reopened from a path descriptor": now(func(h *hand) {
			fd := h.open(h.path, unix.O_PATH)
			h.write(h.open(fmt.Sprint("/proc/self/fd/", fd), unix.O_WRONLY), badContent())
		}),
		"write, reopened from a reader": now(func(h *hand) {
			fd := h.open(h.path, unix.O_RDONLY)
			h.write(h.open(fmt.Sprint("/proc/self/fd/", fd), unix.O_WRONLY), badContent())
		}),
	}
}

func mappings() map[string]change {
	const both = unix.PROT_READ | unix.PROT_WRITE
	return map[string]change{
		"store, descriptor open":   now(func(h *hand) { copy(h.mapping(both, true), needle) }),
		"store, descriptor closed": now(func(h *hand) { copy(h.mapping(both, false), needle) }),
		"store after a load": now(func(h *hand) {
			m := h.mapping(both, false)
			if !bytes.Equal(m, goodContent()) {
				panic(fmt.Errorf("the mapping has %q", m[:16]))
			}
			copy(m, needle)
		}),
		"store, mapping gone": now(func(h *hand) {
			copy(h.mapping(both, false), needle)
			h.drop()
		}),
		"store, flushed": now(func(h *hand) {
			m := h.mapping(both, false)
			copy(m, needle)
			check(unix.Msync(m, unix.MS_SYNC))
		}),
		"store after mprotect": now(func(h *hand) {
			m := h.mapping(unix.PROT_READ, false)
			check(unix.Mprotect(m, both))
			copy(m, needle)
		}),
		"store in the last block": now(func(h *hand) { copy(h.mapping(both, false)[2*blockSize:], needle) }),
	}
}

// transfers are changes by a system call that moves content between descriptors.
func transfers() map[string]change {
	return map[string]change{
		"copy_file_range": now(func(h *hand) {
			from, to := h.scratch(), h.open(h.path, unix.O_WRONLY)
			n, err := unix.CopyFileRange(from, new(int64), to, new(int64), len(goodContent()), 0)
			check(err, whole(n, len(goodContent())))
		}),
		"sendfile": now(func(h *hand) {
			from, to := h.scratch(), h.open(h.path, unix.O_WRONLY)
			n, err := unix.Sendfile(to, from, new(int64), len(goodContent()))
			check(err, whole(n, len(goodContent())))
		}),
		"splice": now(func(h *hand) {
			var ends [2]int
			check(unix.Pipe2(ends[:], unix.O_CLOEXEC))
			h.fds = append(h.fds, ends[:]...)
			h.write(ends[1], []byte(needle))
			n, err := unix.Splice(ends[0], nil, h.open(h.path, unix.O_WRONLY), new(int64), len(needle), 0)
			check(err, whole(int(n), len(needle)))
		}),
		"io_uring": writing(unix.O_WRONLY, func(_ *hand, fd int) { ringWrite(fd, []byte(needle)) }),
	}
}

// scratch is a descriptor of a file next to the one to change, with bad content.
func (h *hand) scratch() int {
	fd := h.open(h.other(), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	h.write(fd, badContent())
	return fd
}

func ranges() map[string]change {
	allocate := func(mode uint32, off, length int64) change {
		return writing(unix.O_RDWR, func(_ *hand, fd int) { check(unix.Fallocate(fd, mode, off, length)) })
	}
	const keep = unix.FALLOC_FL_KEEP_SIZE
	return map[string]change{
		"fallocate, longer":         allocate(0, 3*blockSize, blockSize),
		"fallocate, punch hole":     allocate(unix.FALLOC_FL_PUNCH_HOLE|keep, blockSize, blockSize),
		"fallocate, zero range":     allocate(unix.FALLOC_FL_ZERO_RANGE|keep, blockSize, 100),
		"fallocate, collapse range": allocate(unix.FALLOC_FL_COLLAPSE_RANGE, blockSize, blockSize),
		"fallocate, insert range":   allocate(unix.FALLOC_FL_INSERT_RANGE, blockSize, blockSize),
	}
}

// replacements put another file at the path.
func replacements() map[string]change {
	return map[string]change{
		"rename over": now(func(h *hand) {
			h.made(h.other())
			check(unix.Rename(h.other(), h.path))
		}),
		"removed and made again": now(func(h *hand) {
			check(unix.Unlink(h.path))
			h.made(h.path)
		}),
		"hard link in its place": now(func(h *hand) {
			h.made(h.other())
			check(unix.Unlink(h.path), unix.Link(h.other(), h.path))
		}),
		"symbolic link in its place": now(func(h *hand) {
			h.made(h.other())
			check(unix.Unlink(h.path), unix.Symlink(h.other(), h.path))
		}),
		"exchanged": now(func(h *hand) {
			h.made(h.other())
			check(unix.Renameat2(unix.AT_FDCWD, h.path, unix.AT_FDCWD, h.other(), unix.RENAME_EXCHANGE))
		}),
		"exchanged back and forth": now(func(h *hand) {
			h.made(h.other())
			for range 101 {
				check(unix.Renameat2(unix.AT_FDCWD, h.path, unix.AT_FDCWD, h.other(), unix.RENAME_EXCHANGE))
			}
		}),
		"nameless file linked": now(func(h *hand) {
			fd := h.open(h.path[:strings.LastIndexByte(h.path, '/')], unix.O_TMPFILE|unix.O_RDWR)
			h.write(fd, badContent())
			check(unix.Unlink(h.path))
			check(unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, h.path, unix.AT_SYMLINK_FOLLOW))
		}),
		bindMount: now(func(h *hand) {
			h.made(h.other())
			check(unix.Mount(h.other(), h.path, "", unix.MS_BIND, ""))
		}),
		"directory made again": now(func(h *hand) {
			dir := h.path[:strings.LastIndexByte(h.path, '/')]
			check(unix.Unlink(h.path), unix.Rmdir(dir), unix.Mkdir(dir, 0o755))
			h.made(h.path)
		}),
		"written through another name": now(func(h *hand) {
			check(unix.Link(h.path, h.other()))
			h.write(h.open(h.other(), unix.O_WRONLY), badContent())
		}),
		"moved away, written and moved back": now(func(h *hand) {
			check(unix.Rename(h.path, h.other()))
			h.write(h.open(h.other(), unix.O_WRONLY), badContent())
			check(unix.Rename(h.other(), h.path))
		}),
	}
}

// disguises change the content and hide that.
func disguises() map[string]change {
	rewrite := func(h *hand) {
		h.write(h.open(h.path, unix.O_WRONLY), badContent())
		h.close()
	}
	// restoring restores size and times around a change.
	restoring := func(do func(h *hand)) change {
		return now(func(h *hand) {
			var st unix.Stat_t
			check(unix.Stat(h.path, &st))
			do(h)
			check(unix.UtimesNanoAt(unix.AT_FDCWD, h.path, []unix.Timespec{st.Atim, st.Mtim}, 0))
		})
	}
	return map[string]change{
		"chmod, then write": now(func(h *hand) { check(unix.Chmod(h.path, 0o700)); rewrite(h) }),
		"chown, then write": now(func(h *hand) { check(unix.Chown(h.path, 1, 1)); rewrite(h) }),
		"touch, then write": now(func(h *hand) {
			check(os.Chtimes(h.path, time.Unix(1, 0), time.Unix(1, 0)))
			rewrite(h)
		}),
		"attribute set, then write": now(func(h *hand) {
			check(unix.Setxattr(h.path, "user.test", []byte("x"), 0))
			rewrite(h)
		}),
		"write, times restored": restoring(rewrite),
		"store, times restored": restoring(func(h *hand) {
			m := h.mapping(unix.PROT_READ|unix.PROT_WRITE, false)
			copy(m, needle)
			check(unix.Msync(m, unix.MS_SYNC))
			h.drop()
		}),
		"made again, times restored": restoring(func(h *hand) {
			check(unix.Unlink(h.path))
			h.made(h.path)
		}),
	}
}

// earlier are changes by a writer who was there before the file was opened.
func earlier() map[string]change {
	const both = unix.PROT_READ | unix.PROT_WRITE
	store := func(m []byte) func() { return func() { copy(m, needle) } }
	return map[string]change{
		"before: descriptor": func(h *hand) func() {
			fd := h.open(h.path, unix.O_WRONLY)
			return func() { h.write(fd, badContent()) }
		},
		"before: mapping":                 func(h *hand) func() { return store(h.mapping(both, false)) },
		"before: mapping with descriptor": func(h *hand) func() { return store(h.mapping(both, true)) },
		"before: mapping that was read": func(h *hand) func() {
			m := h.mapping(both, false)
			if m[0] != goodContent()[0] {
				panic(fmt.Errorf("the mapping has %q", m[:16]))
			}
			return store(m)
		},
		// The page is dirty: the next store makes no fault.
		"before: mapping that was written": func(h *hand) func() {
			m := h.mapping(both, false)
			copy(m, goodContent())
			return store(m)
		},
		"before: mapping that may not write yet": func(h *hand) func() {
			m := h.mapping(unix.PROT_READ, false)
			return func() { check(unix.Mprotect(m, both)); copy(m, needle) }
		},
	}
}
