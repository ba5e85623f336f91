package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Host is the directory tree that runtimes keep layers in: the host's, also
// for an agent that runs in a container of its own.
type Host struct {
	root int
	name string // of root, as this process sees it; "" for its own root directory
}

// OpenHost returns the host's tree, given its root directory: "/", or where the
// host's root is mounted. Close it after the last use of all that it returned.
func OpenHost(root string) (*Host, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the host's root directory %s: %w", root, err)
	}
	h := &Host{root: fd}
	name, err := os.Readlink(procFD(fd))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the host's root directory %s: %w", root, err), h.Close())
	}
	if name != "/" {
		h.name = name
	}
	return h, nil
}

// Close releases the tree.
func (h *Host) Close() error {
	if err := unix.Close(h.root); err != nil {
		return fmt.Errorf("the host's root directory: %w", err)
	}
	return nil
}

// strict is how paths are resolved that are known to be free of links. No
// component may be "..", or the path could leave the directory it is meant to be in.
const strict = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// open opens a path of the tree. Symbolic links in it, as runtimes have them, are
// followed within the tree unless resolve forbids it.
func (h *Host) open(name string, flags, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(h.root, relative(name), &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return -1, fmt.Errorf("%s: %w", name, err)
		}
	}
}

// relative is a path of the tree as seen from its root.
func relative(name string) string {
	if trimmed := strings.TrimLeft(name, "/"); trimmed != "" {
		return trimmed
	}
	return "."
}

// A directory is one directory of the tree.
type directory struct {
	name string // absolute in the tree, without symbolic links
	id   Dir
}

// directory resolves a path to the directory that it leads to.
func (h *Host) directory(name string) (directory, error) {
	fd, err := h.open(name, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return directory{}, err
	}
	defer unix.Close(fd)
	id, err := dirOf(fd)
	if err != nil {
		return directory{}, fmt.Errorf("%s: %w", name, err)
	}
	link, err := os.Readlink(procFD(fd))
	if err != nil {
		return directory{}, fmt.Errorf("%s: %w", name, err)
	}
	found := directory{name: path.Join("/", strings.TrimPrefix(link, h.name)), id: id}
	// What readlink says can be out of date, or not be of this tree.
	again, err := h.identify(found.name)
	if err == nil && again != id {
		err = fmt.Errorf("%s: another directory is in its place", found.name)
	}
	return found, err
}

// identify returns the identity of the directory at a path without links.
func (h *Host) identify(name string) (Dir, error) {
	fd, err := h.open(name, unix.O_PATH|unix.O_DIRECTORY, strict)
	if err != nil {
		return Dir{}, err
	}
	defer unix.Close(fd)
	return dirOf(fd)
}

// A Dir tells one directory from every other, also from one that has its name, and
// perhaps its inode number, after it was removed: filesystem, handle, inode number
// and birth time. It is compared for equality only.
type Dir struct{ sum [identitySize]byte }

// String returns the identity as hexadecimal digits.
func (d Dir) String() string { return Identity(d).String() }

var errNoBirthTime = errors.New("its filesystem keeps no birth times: a layer that was removed and unpacked again could not be told apart")

// dirOf returns the identity of an open directory. The filesystem is named by
// its id (statfs), which for most stays the same over a reboot.
func dirOf(fd int) (Dir, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Dir{}, err
	}
	if !f.hasBirthTime() {
		return Dir{}, errNoBirthTime
	}
	fs, err := statfs(fd)
	if err != nil {
		return Dir{}, err
	}
	return f.dir(&fs), nil
}

// statfs describes the filesystem of an open directory.
func statfs(fd int) (unix.Statfs_t, error) {
	var fs unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return unix.Statfs_t{}, fmt.Errorf("statfs of the directory: %w", err)
	}
	return fs, nil
}

// dir condenses the facts about a directory of the filesystem fs.
func (f *facts) dir(fs *unix.Statfs_t) Dir {
	var e encoder
	e.byte(scopeDir)
	e.uint64(uint64(fs.Type), uint64(uint32(fs.Fsid.Val[0])), uint64(uint32(fs.Fsid.Val[1])))
	e.handle(&f.handle)
	e.uint64(f.stat.Ino)
	e.birth(f)
	return Dir{e.sum()}
}

// errUntrusted says that others than root could have written a file.
var errUntrusted = errors.New("must belong to root and be writable by root only")

// A stored is a file of a runtime's storage, open for reading.
type stored struct {
	*os.File
	id Identity
}

// openStored opens a file or directory of a runtime's storage. Nobody but root may
// have written it: the layers' digests come from it.
func (h *Host) openStored(name string, kind uint32) (stored, error) {
	fd, err := h.open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, strict)
	if err != nil {
		return stored{}, err
	}
	f := stored{File: os.NewFile(uintptr(fd), name)}
	var st unix.Stat_t
	err = ignoringEINTR(func() error { return unix.Fstat(fd, &st) })
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != kind:
		err = errors.New("not the kind of file it should be")
	case st.Uid != 0 || st.Mode&0o022 != 0:
		err = errUntrusted
	default:
		f.id, err = Identify(fd)
	}
	if err != nil {
		return stored{}, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, nil
}

// read returns all of a stored file, which must not have more than limit bytes.
func (f stored) read(limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f.File, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", f.Name(), limit)
	}
	return data, nil
}

// ignoringEINTR repeats a system call that a signal interrupted.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// procFD is the link that procfs has for a descriptor of this process.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
