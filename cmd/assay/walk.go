package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A place is what the command line names: a file or a directory, not yet open
// for reading.
type place struct {
	look *os.File // O_PATH
	mode fs.FileMode
	dev  uint64
}

// openPlace looks at a path without opening what is there. The last component
// may not be a symbolic link.
func openPlace(path string) (place, error) {
	at, err := lookAt(unix.AT_FDCWD, path, path)
	if err != nil {
		return place{}, openFailure(path, err)
	}
	switch {
	case at.mode.IsRegular(), at.mode.IsDir():
		return at, nil
	case at.mode.Type() == fs.ModeSymlink:
		err = usage("name what it leads to: see readlink -f", "%s is a symbolic link, which is not followed", path)
	default:
		err = usage("name regular files and directories", "%s is a %s, only regular files are scanned", path, kind(at.mode))
	}
	at.close()
	return place{}, err
}

// lookAt looks at a name in the directory dir, and calls it path.
func lookAt(dir int, name, path string) (place, error) {
	fd, err := retryEINTR(func() (int, error) {
		return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return place{}, err
	}
	at := place{look: os.NewFile(uintptr(fd), path)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		at.close()
		return place{}, err
	}
	info, err := at.look.Stat()
	if err != nil {
		at.close()
		return place{}, err
	}
	at.mode, at.dev = info.Mode(), st.Dev
	return at, nil
}

func (at place) close() { _ = at.look.Close() } // no descriptor of a file's content

// A walker finds the regular files at and below a place. It follows no symbolic
// link, also if one takes a directory's place while it walks.
type walker struct {
	cross  bool                         // also what is mounted below the place
	found  func(*os.File) error         // takes the file over; an error ends the walk
	failed func(path string, err error) // something is not looked at, for this reason
}

// walk finds the files at a place and closes it.
func (w *walker) walk(ctx context.Context, at place) error {
	defer at.close()
	if err := ctx.Err(); err != nil {
		return err
	}
	if at.mode.IsDir() {
		return w.directory(ctx, at)
	}
	file, err := reopen(at.look, at.look.Name())
	if err != nil {
		w.failed(at.look.Name(), openFailure(at.look.Name(), err))
		return nil
	}
	return w.found(file)
}

// directory finds the files below a directory.
func (w *walker) directory(ctx context.Context, at place) error {
	path := at.look.Name()
	dir, err := reopen(at.look, path)
	if err != nil {
		w.failed(path, openFailure(path, err))
		return nil
	}
	defer func() { _ = dir.Close() }() // only read from
	names, err := dir.Readdirnames(-1)
	if err != nil {
		w.failed(path, usage("check the filesystem", "%s cannot be listed completely: %w", path, err))
	}
	slices.SortFunc(names, cmp.Compare[string])
	for _, name := range names {
		inside := filepath.Join(path, name)
		next, err := lookAt(int(dir.Fd()), name, inside)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // gone meanwhile
		case err != nil:
			w.failed(inside, openFailure(inside, err))
			continue
		case !next.mode.IsDir() && !next.mode.IsRegular(), !w.cross && next.dev != at.dev:
			next.close()
			continue
		}
		if err := w.walk(ctx, next); err != nil {
			return err
		}
	}
	return nil
}
