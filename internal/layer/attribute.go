package layer

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Attribution is where a file comes from.
type Attribution struct {
	Reason Reason
	Layer  Layer // if Reason is Pristine
	Depth  int   // of Layer: 0 is the topmost
}

// Attribute proves that the open file fd with the given identity is a file of a
// layer that nobody changed, or says why not. A verdict on a file that is not
// [Pristine] belongs to the container alone.
//
// hint is where the file is said to be, as in /proc/self/fd. It only says where to
// look; whoever controls it can make the proof fail, and no more. What proves:
//
//   - The handle that the overlay reports is that of a file at the same path of a
//     layer, and birth time, change time and size are equal. A copy-up keeps the
//     handle, but has times of its own, which nobody can set. So the content is
//     that of the layer's inode, whichever whiteouts, opaque or redirected
//     directories led the overlay there.
//   - The upper directory has nothing at the path and above it but directories.
//     This is for containers that may set the clock, and so make the times equal.
//   - It is on the root filesystem's mount or device: a process can mount an
//     overlay of its own and forge the handles there.
//
// What is proven once for an identity and a layer is proven for all containers that
// have the layer; those that may set the clock must be asked about each time.
//
// It makes about ten system calls and one more for each layer above the file's,
// opens with O_PATH only, below the host's directories only, and never allocates
// unless it fails. An error comes with [Failed].
func (r *Rootfs) Attribute(fd int, id Identity, hint string) (Attribution, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Attribution{}, err
	}
	behind, reason := r.qualify(&f, id)
	if reason != Pristine {
		return Attribution{Reason: reason}, nil
	}
	hint = r.inside(hint)
	if !isClean(hint) {
		return Attribution{Reason: NoPath}, nil
	}
	if reason, err := r.checkUpper(hint); reason != Pristine {
		return Attribution{Reason: reason}, err
	}
	return r.search(&f, behind, hint)
}

// qualify says Pristine if nothing in what the kernel tells of the file speaks
// against it. It returns the file behind with Pristine and Born.
func (r *Rootfs) qualify(f *facts, id Identity) (backing, Reason) {
	switch {
	case f.identity() != id:
		return backing{}, Changed
	case f.stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return backing{}, NotRegular
	case !r.isOn(f):
		return backing{}, OtherMount
	case !f.hasBirthTime():
		return backing{}, NoBirthTime
	}
	behind, err := f.handle.backing()
	switch {
	case err != nil:
		return backing{}, NoHandle
	case behind.upper:
		return behind, Born
	}
	return behind, Pristine
}

// isOn reports whether the file is on the root filesystem. Where the layers are on
// several filesystems, the device of a file is not that of the overlay; then only
// the container's own mount will do.
func (r *Rootfs) isOn(f *facts) bool {
	return f.stat.Mask&unix.STATX_MNT_ID != 0 && f.stat.Mnt_id == uint64(r.mount.ID) || //nolint:gosec // never negative
		int64(f.stat.Dev_major) == int64(r.mount.Major) && int64(f.stat.Dev_minor) == int64(r.mount.Minor)
}

// inside is the hint as the container sees it.
func (r *Rootfs) inside(hint string) string {
	if at := r.mount.Mountpoint; at != "" && at != "/" {
		if rest, found := strings.CutPrefix(hint, at); found && strings.HasPrefix(rest, "/") {
			return rest
		}
	}
	return hint
}

// maxHint leaves room for a layer's directory within the kernel's PATH_MAX.
const maxHint = 3072

// isClean reports whether a path is absolute and has no component that could lead
// out of the directory it is looked up in.
func isClean(p string) bool {
	if len(p) < 2 || len(p) > maxHint || p[0] != '/' || strings.IndexByte(p, 0) >= 0 {
		return false
	}
	for name := range strings.SplitSeq(p[1:], "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

// openPath opens dir (see prefix) and a clean path below it with O_PATH.
func (h *Host) openPath(dir, clean string) (int, syscall.Errno) {
	var buf [unix.PathMax]byte
	if len(dir)+len(clean) > len(buf) { // clean's slash makes room for the zero byte
		return -1, unix.ENAMETOOLONG
	}
	n := copy(buf[:], dir)
	n += copy(buf[n:], clean[1:])
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: strict}
	return rawOpenat2(h.root, buf[:n+1], &how)
}

// checkUpper says Pristine if the upper directory does not have the path. After a
// rename or removal it has a whiteout there, or at a directory above.
func (r *Rootfs) checkUpper(hint string) (Reason, error) {
	if r.upper == "" {
		return Pristine, nil
	}
	fd, errno := r.host.openPath(r.upper, hint)
	switch errno {
	case 0:
		_ = unix.Close(fd)
		return Overlaid, nil
	case unix.ENOENT:
		return Pristine, nil
	case unix.ENOTDIR, unix.ELOOP:
		return Overlaid, nil
	case unix.ENAMETOOLONG:
		return NoPath, nil
	default:
		return Failed, asError("upper directory", errno)
	}
}

// search looks for the file in the topmost layer that has the path.
func (r *Rootfs) search(f *facts, behind backing, hint string) (Attribution, error) {
	for depth := range r.lowers {
		l := &r.lowers[depth]
		fd, errno := r.host.openPath(l.prefix, hint)
		switch errno {
		case 0:
			reason, err := r.compare(f, behind, fd)
			_ = unix.Close(fd)
			if reason != Pristine {
				return Attribution{Reason: reason}, err
			}
			return Attribution{Reason: Pristine, Layer: l.Layer, Depth: depth}, nil
		case unix.ENOENT:
		case unix.ENOTDIR, unix.ELOOP:
			return Attribution{Reason: Hidden}, nil
		case unix.ENAMETOOLONG:
			return Attribution{Reason: NoPath}, nil
		default:
			return Attribution{}, fmt.Errorf("layer %s: %w", l.Dir, errno)
		}
	}
	return Attribution{Reason: NotInLayers}, nil
}

// compare says Pristine if the overlay's file is the layer's file fd.
func (r *Rootfs) compare(f *facts, behind backing, fd int) (Reason, error) {
	var own facts
	if errno := rawStatx(fd, &own.stat); errno != 0 {
		return Failed, asError("statx of the layer's file", errno)
	}
	switch own.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFCHR, unix.S_IFLNK, unix.S_IFDIR:
		return Hidden, nil
	default:
		return OtherFile, nil
	}
	// Without the flag: the kernel embeds the handle that it could open.
	if err := own.handle.of(fd, 0); err != nil {
		return Failed, err
	}
	switch {
	case !behind.is(&own.handle):
		return OtherFile, nil
	case !sameState(&f.stat, &own.stat):
		return CopiedUp, nil
	case r.indexed && own.stat.Nlink > 1:
		return HardLinked, nil
	}
	return r.checkContent(fd)
}

// sameState reports whether birth time, change time and size are equal.
func sameState(a, b *unix.Statx_t) bool {
	return a.Btime.Sec == b.Btime.Sec && a.Btime.Nsec == b.Btime.Nsec &&
		a.Ctime.Sec == b.Ctime.Sec && a.Ctime.Nsec == b.Ctime.Nsec && a.Size == b.Size
}

// checkContent says Pristine if the layer's file fd holds its content itself: one
// that has the metacopy attribute takes it from a layer further down, which could
// be another one in another container.
func (r *Rootfs) checkContent(fd int) (Reason, error) {
	if r.metacopy == nil {
		return Pristine, nil
	}
	var buf [64]byte
	link := append(append(buf[:0], "/proc/self/fd/"...), 0)
	link = append(strconv.AppendInt(link[:len(link)-1], int64(fd), 10), 0)
	// The link leads to the file that fd has open: no path is looked up.
	switch errno := rawGetxattr(link, r.metacopy); errno {
	case unix.ENODATA, unix.EOPNOTSUPP:
		return Pristine, nil
	case 0:
		return MetadataOnly, nil
	default:
		return Failed, asError("attributes of the layer's file", errno)
	}
}
