package layer

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writable reports whether the root filesystem has an upper directory, which takes
// what the container writes. Without one, nothing in it can change.
func (r *Rootfs) Writable() bool { return r.upper != "" }

// UpperFS returns the type of the upper directory's filesystem (f_type of
// statfs(2), linux/magic.h) as it was when the layers were found, 0 without an
// upper directory.
func (r *Rootfs) UpperFS() int64 { return r.upperType }

// Owns returns the identity of the open file fd, and whether it is on this root
// filesystem, from one observation: two system calls, no allocation. Where it says
// no, the file may still be one: see [OtherMount].
func (r *Rootfs) Owns(fd int) (Identity, bool, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Identity{}, false, err
	}
	return f.identity(), r.isOn(&f), nil
}

// fsType returns the type of the filesystem that a directory without links in its
// path is on.
func (h *Host) fsType(name string) (int64, error) {
	fd, err := h.open(name, unix.O_PATH|unix.O_DIRECTORY, strict)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	fs, err := statfs(fd)
	return fs.Type, err
}

// OpenUpper opens, for reading, the inode in the upper directory that holds the
// content of the open overlay file fd with the given identity. A lease on that
// inode tells whether somebody has the file open, or mapped, for writing: one on
// the overlay's own file does not know of mappings whose descriptor is closed
// (docs/kernel.md). The caller closes the descriptor, which comes with [InUpper]
// only; with any other reason nobody can say that the file has no writer.
//
// hint is where the file is said to be, as in /proc/self/fd. What proves that the
// inode is the one:
//
//   - A file that was made in the container has a handle that names the inode.
//   - A copied-up file keeps the handle of the layer's. Its inode is looked for at
//     the hint, and has this handle as its origin, in an attribute that nobody can
//     set through the overlay and no second file has. A layer's file of several
//     names, which are copied up apart, leaves no origin (ovl_do_copy_up in
//     fs/overlayfs/copy_up.c); its copies the overlay shows with the numbers of
//     their own inodes (ovl_getattr in fs/overlayfs/inode.c).
//   - Birth time, change time and size are equal; alone they prove little, as two
//     files made within a tick of the clock can have the same.
//
// All of it must still hold when the inode is open. The tree belongs to the
// tenant, so that nothing is opened by its path but with O_PATH. An error comes
// with [Failed].
func (r *Rootfs) OpenUpper(fd int, id Identity, hint string) (upper int, reason Reason, err error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return -1, Failed, err
	}
	behind, reason := r.qualify(&f, id)
	if reason != Pristine && reason != Born {
		return -1, reason, nil
	}
	if !r.Writable() {
		return -1, NotInUpper, nil
	}
	found, reason, err := r.reachUpper(behind, hint)
	if reason != InUpper {
		return -1, reason, err
	}
	defer unix.Close(found)
	if reason, err = r.isBehind(&f, behind, found); reason != InUpper {
		return -1, reason, err
	}
	upper, errno := reopen(found, unix.O_NONBLOCK)
	if errno != 0 {
		return -1, Failed, asError("file in the upper directory", errno)
	}
	if reason, err = r.still(fd, id, upper); reason != InUpper {
		_ = unix.Close(upper)
		return -1, reason, err
	}
	return upper, InUpper, nil
}

// reachUpper opens, with O_PATH, what could be the inode behind the file.
func (r *Rootfs) reachUpper(behind backing, hint string) (int, Reason, error) {
	if behind.upper {
		return r.upperByHandle(behind)
	}
	hint = r.inside(hint)
	if !isClean(hint) {
		return -1, NoPath, nil
	}
	fd, errno := r.host.openPath(r.upper, hint)
	switch errno {
	case 0:
		return fd, InUpper, nil
	case unix.ENOENT:
		return -1, NotInUpper, nil
	case unix.ENOTDIR, unix.ELOOP:
		return -1, Hidden, nil
	case unix.ENAMETOOLONG:
		return -1, NoPath, nil
	default:
		return -1, Failed, asError("upper directory", errno)
	}
}

// upperByHandle opens the file that a handle of the upper directory's filesystem
// names, wherever it is there, also if it has no name any more.
func (r *Rootfs) upperByHandle(behind backing) (int, Reason, error) {
	fd, errno := r.host.byHandle(r.upper, behind)
	switch errno {
	case 0:
		return fd, InUpper, nil
	case unix.ESTALE:
		return -1, NotInUpper, nil
	case unix.EOPNOTSUPP:
		return -1, NoHandle, nil
	default:
		return -1, Failed, asError("file in the upper directory by its handle", errno)
	}
}

// byHandle opens, with O_PATH, the file with this handle on the filesystem of a
// directory (see prefix).
func (h *Host) byHandle(dir string, behind backing) (int, syscall.Errno) {
	at, err := h.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, strict)
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = unix.EIO
		}
		return -1, errno
	}
	defer unix.Close(at)
	own := behind.handle()
	return rawOpenByHandle(at, &own, unix.O_PATH|unix.O_CLOEXEC)
}

// isBehind says InUpper if fd is the inode behind the overlay's file.
func (r *Rootfs) isBehind(f *facts, behind backing, fd int) (Reason, error) {
	var own facts
	if errno := rawStatx(fd, &own.stat); errno != 0 {
		return Failed, asError("statx of the file in the upper directory", errno)
	}
	switch {
	case own.stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return Hidden, nil
	case !sameState(&f.stat, &own.stat):
		return OtherFile, nil
	case behind.upper && f.stat.Ino != own.stat.Ino:
		return OtherFile, nil
	case behind.upper:
		return InUpper, nil
	}
	has, err := r.hasOrigin(fd, f)
	switch {
	case err != nil:
		return Failed, err
	case has:
		return InUpper, nil
	case f.stat.Ino != own.stat.Ino:
		return OtherFile, nil
	}
	return r.copiedApart(behind)
}

// hasOrigin reports whether the file fd was copied up from the one that the
// overlay's handle names: the attribute is that handle, without its padding
// (ovl_set_origin_fh in fs/overlayfs/copy_up.c).
func (r *Rootfs) hasOrigin(fd int, f *facts) (bool, error) {
	var buf [maxHandle]byte
	var n int
	err := ignoringEINTR(func() (err error) {
		n, err = unix.Getxattr(procFD(fd), r.origin, buf[:])
		return err
	})
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ERANGE):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("origin of the file in the upper directory: %w", err)
	}
	data := f.handle.data()
	return len(data) > ovlPadding && bytes.Equal(buf[:n], data[ovlPadding:]), nil
}

// copiedApart says InUpper if the layer's file behind a copied-up one has several
// names, so that its copies have no origin and the overlay shows them with the
// numbers of their own inodes, which then tell them apart.
func (r *Rootfs) copiedApart(behind backing) (Reason, error) {
	// Nearly always all layers are on one filesystem, and the upper directory too.
	for _, dir := range []string{r.upper, r.lowers[0].prefix, r.lowers[len(r.lowers)-1].prefix} {
		fd, errno := r.host.byHandle(dir, behind)
		if errno != 0 {
			continue
		}
		var own facts
		errno = rawStatx(fd, &own.stat)
		_ = unix.Close(fd)
		switch {
		case errno != 0:
			return Failed, asError("statx of the layer's file", errno)
		case own.stat.Nlink > 1 && !r.indexed:
			return InUpper, nil
		}
	}
	return OtherFile, nil
}

// still says InUpper if the overlay's file has not changed, and upper is as it is.
func (r *Rootfs) still(fd int, id Identity, upper int) (Reason, error) {
	var f, own facts
	if err := f.observe(fd); err != nil {
		return Failed, err
	}
	if errno := rawStatx(upper, &own.stat); errno != 0 {
		return Failed, asError("statx of the file in the upper directory", errno)
	}
	if f.identity() != id || !sameState(&f.stat, &own.stat) {
		return Changed, nil
	}
	return InUpper, nil
}

// reopen opens the file of a descriptor of O_PATH for reading: by the link that
// procfs has for it, which looks up no path. It must be a regular file.
func reopen(fd, flags int) (int, syscall.Errno) {
	for {
		opened, err := unix.Open(procFD(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|flags, 0)
		if err == nil {
			return opened, 0
		}
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = unix.EIO
		}
		if errno != unix.EINTR {
			return -1, errno
		}
	}
}
