package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"golang.org/x/sys/unix"
)

// statxMask is what statx must give: birth and change time are those of the upper
// inode after a copy-up, while the handle stays the lower's, and a user can set
// neither. The mount is for Attribute.
const statxMask = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_INO | unix.STATX_SIZE |
	unix.STATX_CTIME | unix.STATX_BTIME | unix.STATX_MNT_ID

// An Identity names the content of a file at one moment: a digest of filesystem,
// handle, inode number, birth time, change time and size. Two identities are
// compared for equality and nothing else; the zero Identity names nothing.
//
// The filesystem of an overlay file is the one behind the overlay, as its handle
// tells. So a file of a layer has one identity in all containers that share the
// layer, and another one than the layer's file itself. A filesystem without a UUID
// cannot be told from another one without; then inode number, generation and
// times, to the nanosecond, tell the files apart.
//
// Where the kernel has no handle of the backing file (layers on a filesystem that
// has none, an overlay over overlays, kernels before 6.5), device and inode number
// of the overlay stand in: the identity holds within one container, and is never
// attributed to a layer. The inode number is always part of it: it is what tells
// apart two hard links of one lower file that were copied up at the same moment.
//
// A digest because a cache keeps millions: 24 bytes, where the fields are 100.
// Nobody can make two files with one identity without 2^96 tries.
type Identity struct{ sum [identitySize]byte }

const identitySize = 24

// IsZero reports whether id names nothing.
func (id Identity) IsZero() bool { return id == Identity{} }

// String returns the identity as hexadecimal digits, "" for the zero one.
func (id Identity) String() string {
	if id.IsZero() {
		return ""
	}
	return hex.EncodeToString(id.sum[:])
}

// Bytes returns the identity in the form in which it may be stored. Its meaning can
// change with a version of the agent: stored identities of another version match
// nothing.
func (id Identity) Bytes() [identitySize]byte { return id.sum }

// IdentityOf returns the identity that Bytes gave.
func IdentityOf(b [identitySize]byte) Identity { return Identity{b} }

// Identify returns the identity of the open file fd, which may be opened with
// O_PATH. It makes two system calls and does not allocate.
func Identify(fd int) (Identity, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Identity{}, err
	}
	return f.identity(), nil
}

// facts are what the kernel tells about an open file.
type facts struct {
	stat   unix.Statx_t
	handle handle
}

// observe asks the kernel. The times are read first: a change between the two
// calls cannot pair old times with a new file, as the descriptor stays the same.
func (f *facts) observe(fd int) error {
	if errno := rawStatx(fd, &f.stat); errno != 0 {
		return asError("statx of the file", errno)
	}
	return f.handle.of(fd, atHandleFID)
}

// hasBirthTime reports whether the filesystem keeps the time of a file's birth.
func (f *facts) hasBirthTime() bool { return f.stat.Mask&unix.STATX_BTIME != 0 }

// The first byte of what an identity is a digest of.
const (
	scopeBacking byte = 1 // the handle names the filesystem
	scopeDevice  byte = 2 // the device does
	scopeDir     byte = 3 // a directory: see Dir
)

// identity condenses the facts.
func (f *facts) identity() Identity {
	var e encoder
	if f.handle.kind == typeOverlay {
		e.byte(scopeBacking)
	} else {
		e.byte(scopeDevice)
		e.uint64(uint64(f.stat.Dev_major), uint64(f.stat.Dev_minor))
	}
	e.handle(&f.handle)
	e.uint64(f.stat.Ino)
	e.birth(f)
	e.uint64(uint64(f.stat.Ctime.Sec), uint64(f.stat.Ctime.Nsec), f.stat.Size)
	return Identity{e.sum()}
}

// An encoder writes values one after another, so that different values never give
// the same bytes, and condenses them. What it is given must fit its buffer.
type encoder struct {
	n   int
	buf [maxHandle + 16*8]byte
}

func (e *encoder) byte(b byte) {
	e.buf[e.n] = b
	e.n++
}

func (e *encoder) uint64(values ...uint64) {
	for _, v := range values {
		binary.LittleEndian.PutUint64(e.buf[e.n:], v)
		e.n += 8
	}
}

func (e *encoder) handle(h *handle) {
	e.uint64(uint64(h.kind), uint64(len(h.data())))
	e.n += copy(e.buf[e.n:], h.data())
}

func (e *encoder) birth(f *facts) {
	if !f.hasBirthTime() {
		e.byte(0)
		return
	}
	e.byte(1)
	e.uint64(uint64(f.stat.Btime.Sec), uint64(f.stat.Btime.Nsec))
}

func (e *encoder) sum() [identitySize]byte {
	full := sha256.Sum256(e.buf[:e.n])
	return [identitySize]byte(full[:identitySize])
}
