package layer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxTreeDepth bounds how deep directories are followed.
const maxTreeDepth = 128

// A Listing is the regular files of a layer.
type Listing struct {
	// Files, the smallest first; one name of those that have several.
	Files []File
	// Skipped is how many entries are neither regular files nor directories (links,
	// pipes, devices, whiteouts), or on another filesystem.
	Skipped int
	// Truncated says that there is more: beyond the limit, too deep, under too long
	// a path, or in a directory that could not be read any more.
	Truncated bool
}

// List returns the files of the layer, of the first limit entries that are found:
// of all kinds, so that it bounds the work. It opens directories only, strictly
// inside the layer: no symbolic link is followed and no mount entered. Directories
// that go while it walks are left out.
func (t *Tree) List(ctx context.Context, limit int) (Listing, error) {
	w := walk{tree: t, left: limit, seen: map[uint64]bool{}, queue: []string{""}}
	for len(w.queue) > 0 {
		dir := w.queue[0]
		w.queue = w.queue[1:]
		if err := w.directory(ctx, dir); err != nil {
			return Listing{}, fmt.Errorf("layer %s%s: %w", t.path, dir, err)
		}
	}
	slices.SortFunc(w.found.Files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), strings.Compare(a.Path, b.Path))
	})
	return w.found, nil
}

// A walk is a listing in the making.
type walk struct {
	tree  *Tree
	left  int             // entries to be looked at
	seen  map[uint64]bool // inodes of files with several names
	queue []string        // directories, with a slash before each name
	found Listing
}

// directory lists one directory and queues those in it.
func (w *walk) directory(ctx context.Context, dir string) error {
	fd, errno := w.tree.openat(relative(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME)
	if errno == unix.EPERM {
		fd, errno = w.tree.openat(relative(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	}
	switch errno {
	case 0:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil
	case unix.EXDEV:
		w.found.Skipped++
		return nil
	default:
		return errno
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	for {
		names, err := f.Readdirnames(512)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, name := range names {
			if w.left <= 0 {
				w.found.Truncated = true
				w.queue = nil
				return nil
			}
			w.left--
			if err := w.entry(fd, dir+"/"+name, name); err != nil {
				return err
			}
		}
	}
}

// entry lists one name of the directory at.
func (w *walk) entry(at int, path, name string) error {
	var st unix.Stat_t
	err := ignoringEINTR(func() error {
		return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	})
	kind := st.Mode & unix.S_IFMT
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return fmt.Errorf("stat of %s: %w", name, err)
	case st.Dev != w.tree.device, kind != unix.S_IFREG && kind != unix.S_IFDIR:
		w.found.Skipped++
	case len(path) > maxHint:
		w.found.Truncated = true
	case kind == unix.S_IFDIR && strings.Count(path, "/") > maxTreeDepth:
		w.found.Truncated = true
	case kind == unix.S_IFDIR:
		w.queue = append(w.queue, path)
	case st.Nlink > 1 && w.seen[st.Ino]:
	default:
		if st.Nlink > 1 {
			w.seen[st.Ino] = true
		}
		w.found.Files = append(w.found.Files, File{Path: path, Size: st.Size, inode: st.Ino})
	}
	return nil
}
