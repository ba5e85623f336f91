package clamd

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// A state is what tells that a file was written to.
type state struct {
	size         int64 // bytes
	mtime, ctime unix.Timespec
}

// A source is a lent file: read with pread, never closed, never moved.
type source struct {
	fd    int
	begin state
	limit int64 // bytes that clamd takes; negative: no limit known
	rar   bool  // begins like a RAR archive
}

// rarMagic is what both formats of RAR archives begin with.
const rarMagic = "Rar!\x1a\x07"

// stat returns the state of the file behind fd.
func stat(fd int) (state, error) {
	var st unix.Stat_t
	if _, err := retry(func() (int, error) { return 0, unix.Fstat(fd, &st) }); err != nil {
		return state{}, fmt.Errorf("clamd: fstat: %w: %w", scanner.ErrRead, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return state{}, fmt.Errorf("clamd: not a regular file: %w", scanner.ErrRead)
	}
	return state{size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// openSource looks at f before a scan. It proves that f can be read at all,
// because clamd calls clean what it cannot read.
func openSource(f *scanner.File, limit int64) (source, error) {
	begin, err := stat(f.FD)
	if err != nil {
		return source{}, err
	}
	src := source{fd: f.FD, begin: begin, limit: limit}
	if src.tooLarge(max(f.Size, begin.size)) {
		return src, nil
	}
	if begin.size < f.Size {
		return source{}, shrunk(begin.size, f.Size)
	}
	if begin.size == 0 {
		return src, nil
	}
	head := make([]byte, len(rarMagic))
	n, err := src.read(head, 0)
	if err != nil {
		return source{}, err
	}
	src.rar = string(head[:n]) == rarMagic
	return src, nil
}

// tooLarge reports whether a file of size bytes is more than clamd scans.
func (s source) tooLarge(size int64) bool { return s.limit >= 0 && size > s.limit }

// changed reports whether the file was written to, or touched, since the begin.
func (s source) changed() bool {
	now, err := stat(s.fd)
	return err != nil || now != s.begin
}

// read reads at offset like pread(2); n is 0 at the end of the file.
func (s source) read(p []byte, offset int64) (n int, err error) {
	n, err = retry(func() (int, error) { return unix.Pread(s.fd, p, offset) })
	if err != nil {
		return 0, fmt.Errorf("clamd: read at %d: %w: %w", offset, scanner.ErrRead, err)
	}
	return n, nil
}

// offset returns the descriptor's file offset in bytes.
func (s source) offset() (int64, error) {
	at, err := unix.Seek(s.fd, 0, io.SeekCurrent)
	if err != nil {
		return 0, fmt.Errorf("clamd: file offset: %w: %w", scanner.ErrRead, err)
	}
	return at, nil
}

// putBack sets the offset, which clamd rewinds, to what it was.
func (s source) putBack(was int64) error {
	if now, err := s.offset(); err != nil || now == was {
		return err
	}
	if _, err := unix.Seek(s.fd, was, io.SeekStart); err != nil {
		return fmt.Errorf("clamd: file offset: %w: %w", scanner.ErrRead, err)
	}
	return nil
}

// shrunk returns the error for a file that ends too early.
func shrunk(now, before int64) error {
	return fmt.Errorf("clamd: file has %d of %d bytes: %w", now, before, scanner.ErrRead)
}

// retry calls fn until it is not interrupted by a signal.
func retry(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
