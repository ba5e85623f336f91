package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxHandle is MAX_HANDLE_SZ, see open_by_handle_at(2).
	maxHandle = 128

	// atHandleFID asks for a handle that only identifies and need not be openable
	// (AT_HANDLE_FID of linux/fcntl.h, 6.5): all that overlayfs offers by default.
	atHandleFID = 0x200

	// typeOverlay is OVL_FILEID_V1 of enum fid_type. No other filesystem uses it.
	typeOverlay = 0xf8
)

// A handle is struct file_handle of fcntl.h.
type handle struct {
	size  uint32 // of data
	kind  int32  // what data means, chosen by the filesystem; 0 for no handle
	bytes [maxHandle]byte
}

func (h *handle) data() []byte { return h.bytes[:min(h.size, maxHandle)] }

// of asks the kernel for the handle of an open file. A filesystem that has none
// leaves the handle empty.
func (h *handle) of(fd, flags int) error {
	errno := rawHandle(fd, flags, h)
	if errno == unix.EINVAL && flags&atHandleFID != 0 {
		errno = rawHandle(fd, flags&^atHandleFID, h) // before 6.5
	}
	switch errno {
	case 0:
		return nil
	case unix.EOPNOTSUPP, unix.EINVAL, unix.EOVERFLOW:
		h.size, h.kind = 0, 0
		return nil
	default:
		return fmt.Errorf("handle of the file: %w", errno)
	}
}

// A backing is what the handle of an overlay file says about the file behind it.
type backing struct {
	upper bool   // the file was born in the upper directory
	kind  uint8  // type of the backing file's own handle
	data  []byte // the backing file's own handle
}

// Layout of struct ovl_fh in fs/overlayfs/overlayfs.h, since 5.5 and on disk, so
// stable: three bytes of padding, version, magic, length from the version on,
// flags, type of the backing handle, UUID of the backing filesystem, handle.
const (
	ovlPadding   = 3
	ovlVersionAt = ovlPadding
	ovlMagicAt   = ovlPadding + 1
	ovlLengthAt  = ovlPadding + 2
	ovlFlagsAt   = ovlPadding + 3
	ovlTypeAt    = ovlPadding + 4
	ovlUUIDAt    = ovlPadding + 5
	ovlDataAt    = ovlUUIDAt + 16

	ovlVersion = 0
	ovlMagic   = 0xfb
	// ovlUpper is OVL_FH_FLAG_PATH_UPPER; the flags below it say the byte order.
	ovlUpper     = 1 << 2
	ovlKnownFlag = ovlUpper | 1<<1 | 1<<0
)

// ovlEndian is OVL_FH_FLAG_CPU_ENDIAN: OVL_FH_FLAG_BIG_ENDIAN where it applies.
var ovlEndian = binary.NativeEndian.Uint16([]byte{0, 1}) & 1 //nolint:gochecknoglobals // a constant of the processor

var errHandle = errors.New("the handle is not one of an overlay file")

// backing reads the handle of an overlay file. It returns errHandle for any other:
// a file that is not on an overlay, or on one whose layers have no handles.
func (h *handle) backing() (backing, error) {
	if h.kind != typeOverlay || h.size > maxHandle || h.size <= ovlDataAt {
		return backing{}, errHandle
	}
	d := h.data()
	end := ovlPadding + int(d[ovlLengthAt])
	if d[ovlVersionAt] != ovlVersion || d[ovlMagicAt] != ovlMagic || d[ovlFlagsAt]&^ovlKnownFlag != 0 ||
		end <= ovlDataAt || end > len(d) {
		return backing{}, errHandle
	}
	return backing{upper: d[ovlFlagsAt]&ovlUpper != 0, kind: d[ovlTypeAt], data: d[ovlDataAt:end]}, nil
}

// is reports whether h is the handle of the backing file.
func (b backing) is(h *handle) bool {
	return h.kind == int32(b.kind) && h.size > 0 && bytes.Equal(b.data, h.data())
}

// handle returns the backing file's own handle, to open it by.
func (b backing) handle() handle {
	h := handle{kind: int32(b.kind)}
	h.size = uint32(copy(h.bytes[:], b.data)) //nolint:gosec // at most maxHandle
	return h
}

// asError turns an errno into an error that says what failed.
func asError(what string, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", what, errno)
}
