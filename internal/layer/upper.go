package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoUpper says that the file behind an overlay's file cannot be reached in the
// upper directory, or is not proven to be it. Then nobody can tell who writes to it.
var ErrNoUpper = errors.New("the file in the upper directory cannot be reached")

// readFlags are how a file is opened for a look: nothing is waited for, and nothing
// of it is run, followed or taken.
const readFlags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC

// OpenUpper opens the inode in the upper directory that has the content of the
// overlay's open file fd, for reading. It alone knows of a process that keeps a
// writable mapping of the file and has closed its descriptor: the overlay gives
// mappings the inode behind it (docs/kernel.md).
//
// A file that was born in the upper directory is found by the handle that the
// overlay's embeds, one that was copied up by hint, with its times and size compared:
// nobody can set those. The caller closes the descriptor. Errors wrap ErrNoUpper.
func (r *Rootfs) OpenUpper(fd int, id Identity, hint string) (int, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNoUpper, err)
	}
	if r.upper == "" || f.identity() != id || !r.isOn(&f) || f.stat.Mode&unix.S_IFMT != unix.S_IFREG || !f.hasBirthTime() {
		return -1, ErrNoUpper
	}
	behind, err := f.handle.backing()
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNoUpper, err)
	}
	open := func() (int, error) { return r.openCopied(r.inside(hint)) }
	if behind.upper {
		open = func() (int, error) { return r.openBorn(behind) }
	}
	upper, err := open()
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNoUpper, err)
	}
	if err := r.sameFile(upper, fd, &f); err != nil {
		_ = unix.Close(upper)
		return -1, fmt.Errorf("%w: %w", ErrNoUpper, err)
	}
	return upper, nil
}

// openBorn opens a file of the upper directory's filesystem by its handle.
func (r *Rootfs) openBorn(b backing) (int, error) {
	mount, err := r.host.open("/"+r.upper, unix.O_RDONLY|unix.O_DIRECTORY, strict)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	h := unix.NewFileHandle(int32(b.kind), b.data)
	for {
		fd, err := unix.OpenByHandleAt(mount, h, readFlags)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openCopied opens the upper directory's file at a path of the container. The tree
// is the tenant's: only what is a regular file already is opened for reading.
func (r *Rootfs) openCopied(hint string) (int, error) {
	if !isClean(hint) {
		return -1, errors.New("no path to look at")
	}
	place, errno := r.host.openPath(r.upper, hint)
	if errno != 0 {
		return -1, errno
	}
	defer unix.Close(place)
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(place, &st) }); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, errors.New("not a regular file")
	}
	for {
		fd, err := unix.Open(procFD(place), readFlags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// sameFile proves that the file upper is the content of the overlay's file fd, which
// was f a moment ago and is still.
func (r *Rootfs) sameFile(upper, fd int, f *facts) error {
	var behind, again facts
	if err := behind.observe(upper); err != nil {
		return err
	}
	if err := again.observe(fd); err != nil {
		return err
	}
	if behind.stat.Mode&unix.S_IFMT != unix.S_IFREG || !sameState(&f.stat, &behind.stat) || again.identity() != f.identity() {
		return errors.New("another file is in its place")
	}
	return nil
}

// Owns returns the identity of the open file fd and whether it is on this root
// filesystem. It makes two system calls and does not allocate.
func (r *Rootfs) Owns(fd int) (id Identity, onRootfs bool, err error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Identity{}, false, err
	}
	return f.identity(), r.isOn(&f), nil
}

// Writable reports whether the overlay has an upper directory. Without one nothing
// in the container can change a file of it.
func (r *Rootfs) Writable() bool { return r.upper != "" }

// UpperFS is the type of the upper directory's filesystem (statfs(2), f_type), 0
// without one.
func (r *Rootfs) UpperFS() int64 { return r.upperFS }

// Local reports whether the layer at a depth is on a filesystem that only this kernel
// changes: on others an identity proves nothing.
func (r *Rootfs) Local(depth int) bool { return r.lowers[depth].local }

// Directory is where the layer at a depth is on the host.
func (r *Rootfs) Directory(depth int) string { return "/" + r.lowers[depth].prefix }
