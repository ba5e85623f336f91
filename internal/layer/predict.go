package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNotSupported says that the kernel, or the filesystem of a layer, does not have
// what is asked for. The error names it, and what can be done.
var ErrNotSupported = errors.New("not supported")

// A uuid is that of a filesystem; many of zero bytes are a valid one.
type uuid [16]byte

// uuidOf asks for the UUID of the filesystem of an open directory, which must not
// be opened with O_PATH.
func uuidOf(fd int) (uuid, error) {
	var u fsUUID
	switch errno := rawUUID(fd, &u); {
	case errno == unix.ENOTTY || errno == unix.EOPNOTSUPP || errno == unix.EINVAL:
		return uuid{}, fmt.Errorf("UUID of the layer's filesystem (FS_IOC_GETFSUUID, Linux 6.9; not all filesystems have one): %w: %w; files of this layer are scanned when they are first opened", ErrNotSupported, errno)
	case errno != 0:
		return uuid{}, fmt.Errorf("UUID of the layer's filesystem: %w", errno)
	case int(u.length) != len(u.bytes):
		return uuid{}, fmt.Errorf("UUID of the layer's filesystem: %w: %d bytes, want %d", ErrNotSupported, u.length, len(u.bytes))
	}
	return u.bytes, nil
}

// ProbeUUID tries whether the root filesystem tells its UUID. It wraps
// [ErrNotSupported] if the kernel cannot ask for it, or there is none to tell.
func ProbeUUID() error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /: %w", err)
	}
	defer unix.Close(fd)
	_, err = uuidOf(fd)
	return err
}

// predict returns what an overlay will tell of the open file fd of one of its lower
// directories, as long as nobody changes it: the handle that overlayfs makes around
// the file's own one (ovl_encode_real_fh in fs/overlayfs/copy_up.c), and the file's
// own inode number, birth time, change time and size.
//
// A wrong prediction can only name nothing. What is predicted holds the file's own
// handle, inode number and times, in the form that overlayfs has for a file of a
// lower directory. An overlay tells that only of this very inode, or of its copy
// in an upper directory, which has a birth and a change time of its own; or of a
// file with the same inode number, generation, times and size on another filesystem
// with the same UUID. That is what [Identity] says of any two files, and to use
// what is known of an identity, it still takes [Rootfs.Attribute]. Predictions are
// wrong, and so useless, where the overlay shows other inode numbers (layers on
// several filesystems with xino), is mounted with uuid=off on a filesystem with a
// UUID, or is on an overlay.
func predict(fd int, of uuid) (facts, error) {
	var f facts
	if errno := rawStatx(fd, &f.stat); errno != 0 {
		return facts{}, asError("statx of the layer's file", errno)
	}
	var own handle
	// Without AT_HANDLE_FID: overlayfs embeds the handle that can be opened.
	if err := own.of(fd, 0); err != nil {
		return facts{}, err
	}
	var ok bool
	if f.handle, ok = overlayHandle(&own, of); !ok || !f.hasBirthTime() {
		return facts{}, fmt.Errorf("handles and birth times of the layer's filesystem: %w; use one that has both, such as ext4, xfs or btrfs", ErrNotSupported)
	}
	return f, nil
}

// overlayHandle makes the handle that an overlay has for a file of a lower
// directory (see the layout above) from the file's own. It fails for no handle, and
// for one that would not fit.
func overlayHandle(own *handle, of uuid) (handle, bool) {
	data := own.data()
	size := ovlDataAt + len(data)
	if len(data) == 0 || len(data)%4 != 0 || own.kind <= 0 || own.kind >= 0xff || size > maxHandle {
		return handle{}, false
	}
	h := handle{size: uint32(size), kind: typeOverlay}
	h.bytes[ovlVersionAt] = ovlVersion
	h.bytes[ovlMagicAt] = ovlMagic
	h.bytes[ovlLengthAt] = byte(size - ovlPadding)
	h.bytes[ovlFlagsAt] = byte(ovlEndian)
	h.bytes[ovlTypeAt] = byte(own.kind)
	copy(h.bytes[ovlUUIDAt:], of[:])
	copy(h.bytes[ovlDataAt:], data)
	return h, true
}
