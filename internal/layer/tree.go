package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Tree is the directory of a layer, to be read ahead of the opens of containers:
// on the host, below their overlays, where reading raises no events. It holds one
// descriptor, and so its mount, until it is closed. It can be used by several
// goroutines.
type Tree struct {
	root   int
	path   string
	id     Dir
	uuid   uuid
	device uint64
	fsType int64
}

// Errors of [Tree.Open].
var (
	// ErrStale says that a file is not there any more as it was listed.
	ErrStale = errors.New("the file is not as it was listed")
	// ErrNoContent says that a file stands for something else: its content is that of
	// a lower layer, or it hides one there.
	ErrNoContent = errors.New("the file has no content of its own")
)

// OpenLayer opens the directory of a layer, by its path in the host's tree. Symbolic
// links in that are followed, as runtimes have them. It wraps [ErrNotSupported]
// where identities cannot be predicted.
func (h *Host) OpenLayer(name string) (*Tree, error) {
	dir, err := h.directory(name)
	if err != nil {
		return nil, err
	}
	fd, err := h.open(dir.name, unix.O_RDONLY|unix.O_DIRECTORY, strict)
	if err != nil {
		return nil, err
	}
	t := &Tree{root: fd, path: dir.name}
	if err := t.identify(dir.id); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir.name, err), t.Close())
	}
	return t, nil
}

// identify asks the kernel about the directory, which must be the one with id.
func (t *Tree) identify(id Dir) error {
	var err error
	if t.id, err = dirOf(t.root); err != nil {
		return err
	}
	if t.id != id {
		return errors.New("another directory is in its place")
	}
	if t.uuid, err = uuidOf(t.root); err != nil {
		return err
	}
	if _, err = predict(t.root, t.uuid); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(t.root, &st) }); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	t.device = st.Dev
	fs, err := statfs(t.root)
	t.fsType = fs.Type
	return err
}

// Close releases the directory. What was opened below it stays open.
func (t *Tree) Close() error {
	if err := unix.Close(t.root); err != nil {
		return fmt.Errorf("directory of the layer: %w", err)
	}
	return nil
}

// Layer returns the layer that the tree is, with the digest that one of the
// resolvers knows. It is the same as [Rootfs.Layers] has for it. Errors are those of
// the resolvers; the layer is right with them, but has no digest.
func (t *Tree) Layer(ctx context.Context, resolvers ...Resolver) (Directory, error) {
	digests, err := resolve(ctx, []string{t.path}, resolvers)
	return Directory{Layer: Layer{Digest: digests[0], Dir: t.id}, Path: t.path}, err
}

// FS returns the type of the directory's filesystem (f_type of statfs(2),
// linux/magic.h), as [Rootfs.UpperFS] does for an upper one: on some, nothing must be
// remembered (see the package comment).
func (t *Tree) FS() int64 { return t.fsType }

// A File is a regular file of a layer, as it was listed.
type File struct {
	// Path in the layer and in the container, absolute.
	Path string
	// Size in bytes.
	Size  int64
	inode uint64
}

// A Source is a file of a layer, open for reading.
type Source struct {
	*os.File
	id   Identity
	uuid uuid
}

// Identity returns the identity that an overlay on the layer will report for the
// file, as long as it is [Pristine] there. It may be wrong, but never another file's.
func (s *Source) Identity() Identity { return s.id }

// Unchanged reports whether the file is as it was when it was opened. What was read
// of it in between then belongs to its identity, provided that nobody has it open,
// or mapped, for writing: a read lease on it tells (fcntl(2), F_SETLEASE). Change
// times stand still within a tick of the clock on kernels before 6.13; a file that
// is younger than that when it is opened proves nothing there.
func (s *Source) Unchanged() (bool, error) {
	f, err := predict(int(s.Fd()), s.uuid) //nolint:gosec // a descriptor
	return err == nil && f.identity() == s.id, err
}

// Open opens a listed file for reading, without changing its access time where
// that is permitted. It fails with [ErrStale] if another file is there, or one of
// another size, or it could only be reached over a symbolic link or a mount, and
// with [ErrNoContent] for files that overlayfs does not show as they are.
func (t *Tree) Open(f File) (*Source, error) {
	fd, errno := t.openat(strings.TrimPrefix(f.Path, "/"), unix.O_PATH|unix.O_NOFOLLOW)
	switch errno {
	case 0:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV:
		return nil, fmt.Errorf("%s: %w: %w", f.Path, ErrStale, errno)
	default:
		return nil, fmt.Errorf("%s: %w", f.Path, errno)
	}
	defer unix.Close(fd)
	s, err := t.read(f, fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return s, nil
}

// read opens the file that fd is with O_PATH.
func (t *Tree) read(f File, fd int) (*Source, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	// Before it is opened: opening a pipe or a device would do something.
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != f.inode || st.Dev != t.device {
		return nil, ErrStale
	}
	opened, errno := reopen(fd, unix.O_NONBLOCK|unix.O_NOATIME)
	if errno == unix.EPERM {
		opened, errno = reopen(fd, unix.O_NONBLOCK)
	}
	if errno != 0 {
		return nil, errno
	}
	s := &Source{File: os.NewFile(uintptr(opened), t.path+f.Path), uuid: t.uuid}
	known, err := predict(opened, t.uuid)
	if err == nil && known.stat.Size != uint64(f.Size) { //nolint:gosec // never negative
		err = ErrStale
	}
	if err == nil {
		err = hasContent(opened)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.id = known.identity()
	return s, nil
}

// hasContent fails with ErrNoContent for a file that overlayfs takes for something
// else. It does not know how the layer will be mounted, and so asks for both names.
func hasContent(fd int) error {
	for _, name := range []string{
		"trusted.overlay.metacopy", "user.overlay.metacopy", "trusted.overlay.whiteout", "user.overlay.whiteout",
	} {
		err := ignoringEINTR(func() error {
			_, err := unix.Fgetxattr(fd, name, nil)
			return err
		})
		switch {
		case err == nil:
			return fmt.Errorf("%w: %s", ErrNoContent, name)
		case !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// openat opens a path below the directory, strictly within its mount.
func (t *Tree) openat(relative string, flags uint64) (int, syscall.Errno) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: strict | unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(t.root, relative, &how)
		var errno syscall.Errno
		switch {
		case err == nil:
			return fd, 0
		case !errors.As(err, &errno):
			return -1, unix.EIO
		case errno != unix.EINTR && errno != unix.EAGAIN:
			return -1, errno
		}
	}
}
