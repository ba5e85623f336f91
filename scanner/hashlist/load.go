package hashlist

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// builtin names the knowledge that is in the program and in no list. It changes
// whenever that or the meaning of a list does.
const builtin = "eicar 1"

// maxList is the largest list in bytes.
const maxList = 1 << 30

// A snapshot is all that is known at one time. It is never changed.
type snapshot struct {
	generation scanner.Generation
	lists      [algorithms]list
}

// A list has the entries of one algorithm.
type list struct {
	names  map[key]string
	sizes  map[int64]struct{} // the sizes of entries that have one
	always bool               // there are entries for any size
}

type key struct {
	digest digest
	size   int64 // bytes, or anySize
}

// needed reports whether a file of that many bytes could be listed.
func (l *list) needed(size int64) bool {
	if l.always {
		return true
	}
	_, ok := l.sizes[size]
	return ok
}

func (l *list) lookup(d digest, size int64) (name string, found bool) {
	if name, found = l.names[key{d, size}]; found {
		return name, true
	}
	name, found = l.names[key{d, anySize}]
	return name, found
}

// add adds e. Of two names for one digest the first stays.
func (s *snapshot) add(e entry) {
	l := &s.lists[e.algorithm]
	if l.names == nil {
		l.names, l.sizes = map[key]string{}, map[int64]struct{}{}
	}
	k := key{e.digest, e.size}
	if _, known := l.names[k]; known {
		return
	}
	l.names[k] = e.name
	if e.size == anySize {
		l.always = true
	} else {
		l.sizes[e.size] = struct{}{}
	}
}

// load reads all lists into a new snapshot.
func load(ctx context.Context, paths []string) (*snapshot, error) {
	s := &snapshot{}
	content := sha256.New()
	fmt.Fprintf(content, "%s\n", builtin)
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		text, err := readList(path)
		if err != nil {
			return nil, err
		}
		if err := parse(ctx, path, text, s.add); err != nil {
			return nil, err
		}
		fmt.Fprintf(content, "%s %d\n", formatOf(path).name, len(text))
		_, _ = io.WriteString(content, text) // A hash never fails.
	}
	s.generation = scanner.Generation("hashlist-" + hex.EncodeToString(content.Sum(nil)[:16]))
	return s, nil
}

// readList returns the content of a list, which must be a regular file.
func readList(path string) (string, error) {
	// A FIFO in place of a list must not block whoever loads it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("hash list: %w; make the file readable, or take it out of the configuration", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("hash list: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxList {
		return "", fmt.Errorf("hash list %s is not a regular file of at most %d bytes; name such files only", path, int64(maxList))
	}
	var text strings.Builder
	text.Grow(int(info.Size()))
	if _, err := io.Copy(&text, io.LimitReader(f, maxList)); err != nil {
		return "", fmt.Errorf("hash list: %w", err)
	}
	return text.String(), nil
}

// expand returns the files that the patterns stand for, each once, in order.
func expand(patterns []string) ([]string, error) {
	var paths []string
	for _, pattern := range patterns {
		if !filepath.IsAbs(pattern) {
			return nil, fmt.Errorf("hash list %q is not an absolute path; write it from / on", pattern)
		}
		if !strings.ContainsAny(pattern, `*?[\`) {
			paths = append(paths, pattern)
			continue
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("hash list pattern %q: %w; close its brackets, or put a \\ before characters to be taken as they are", pattern, err)
		}
		paths = append(paths, matches...)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// A stamp changes whenever a list does.
type stamp struct {
	path         string
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	errno        unix.Errno // why there is nothing to see
}

func stampAll(paths []string) []stamp {
	stamps := make([]stamp, 0, len(paths))
	for _, path := range paths {
		stamps = append(stamps, stampOf(path))
	}
	return stamps
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		s := stamp{path: path, dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
		errors.As(err, &s.errno)
		return s
	}
}
