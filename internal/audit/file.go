package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"gopkg.in/natefinch/lumberjack.v2"
)

const mebibyte = 1 << 20

var errNotRegular = errors.New("not a regular file: name a regular file or one that does not exist yet")

// A recordFile is a file of whole lines, rotated by size and count. A line is
// in it entirely or not at all, unless the machine dies; what a dead machine
// left of a line is cut off before the next one is written.
type recordFile struct {
	path  string
	rot   *lumberjack.Logger
	whole bool // the file is known to end with a whole line
}

// openRecordFile checks the path, makes its directory (0750) and the file
// (0600). maxSize is in bytes; it and keep stand for their defaults when 0.
func openRecordFile(path string, maxSize int64, keep int) (*recordFile, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", path)
	}
	if maxSize <= 0 {
		maxSize = DefaultMaxSize
	}
	if keep <= 0 {
		keep = DefaultKeepFiles
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil && !diskFull(err) {
		return nil, err
	}
	if err := createRegular(path); err != nil && !diskFull(err) {
		return nil, err
	}
	return &recordFile{path: path, rot: &lumberjack.Logger{
		Filename:   path,
		MaxSize:    int((maxSize + mebibyte - 1) / mebibyte),
		MaxBackups: keep,
	}}, nil
}

// createRegular makes sure that path is a regular file that can be written.
// Anything else is refused without opening it: opening a FIFO may wait and
// opening a device may do anything.
func createRegular(path string) error {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", path, errNotRegular)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Write appends one line, newline included. After an error the line is not in
// the file and may be written again.
func (f *recordFile) Write(line []byte) (int, error) {
	if !f.whole {
		if err := dropTornLine(f.path); err != nil {
			return 0, err
		}
		f.whole = true
	}
	n, err := f.rot.Write(line)
	if err != nil {
		// The next write opens the file anew, for appending, after the cut.
		f.whole = false
		return n, errors.Join(err, f.rot.Close())
	}
	return n, nil
}

// Close closes the file, cutting off what a failed write may have left.
func (f *recordFile) Close() error {
	err := f.rot.Close()
	if !f.whole {
		err = errors.Join(err, dropTornLine(f.path))
	}
	return err
}

// dropTornLine cuts off what follows the last newline of the file at path. No
// file is no error; a file whose end is longer than any line is refused, for it
// is not ours to cut.
func dropTornLine(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", path, errNotRegular)
	}
	end, err := endOfLastLine(f, info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if end == info.Size() {
		return nil
	}
	return f.Truncate(end)
}

// endOfLastLine returns the offset after the last newline of the size bytes of r.
func endOfLastLine(r io.ReaderAt, size int64) (int64, error) {
	from := max(0, size-maxLine)
	tail := make([]byte, size-from)
	if _, err := r.ReadAt(tail, from); err != nil {
		return 0, err
	}
	last := bytes.LastIndexByte(tail, '\n')
	if last < 0 && from > 0 {
		return 0, fmt.Errorf("no line ends in its last %d bytes: not a record file; move it away", maxLine)
	}
	return from + int64(last) + 1, nil
}
