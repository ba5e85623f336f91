package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Tree is an unpacked layer's directory, open to be read on the host: which raises
// no events, and waits for no container.
type Tree struct {
	root *os.Root
	name string
	dir  Dir
	dev  uint64
	uuid uuid
}

// A TreeFile is one regular file of a layer.
type TreeFile struct {
	Path string // below the layer's directory
	Size int64  // bytes
	ino  uint64
}

// maxTreeFiles bounds the files of one layer that are listed.
const maxTreeFiles = 2_000_000

// OpenLayer opens a layer's directory. It needs a filesystem that tells its UUID
// (FS_IOC_GETFSUUID, Linux 6.9), since the identities of its files on an overlay have
// it in them; without, the error wraps [ErrNoUUID].
func (h *Host) OpenLayer(dir string) (*Tree, error) {
	fd, err := h.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	defer unix.Close(fd)
	t := &Tree{name: dir}
	var kind int64
	if t.dir, kind, err = dirOf(fd); err != nil {
		return nil, fmt.Errorf("layer %s: %w", dir, err)
	}
	if !isLocal(kind) {
		return nil, fmt.Errorf("layer %s: others than this kernel can change its files", dir)
	}
	if t.uuid, err = uuidOf(fd); err != nil {
		return nil, fmt.Errorf("layer %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, fmt.Errorf("layer %s: %w", dir, err)
	}
	t.dev = st.Dev
	if t.root, err = os.OpenRoot(procFD(fd)); err != nil {
		return nil, fmt.Errorf("layer %s: %w", dir, err)
	}
	return t, nil
}

// Close gives the directory up.
func (t *Tree) Close() error { return t.root.Close() }

// Dir is the identity of the layer's directory.
func (t *Tree) Dir() Dir { return t.dir }

// List returns the layer's regular files, each content once. What vanishes meanwhile
// is left out, and so is what is on another filesystem.
func (t *Tree) List(ctx context.Context) ([]TreeFile, error) {
	var files []TreeFile
	linked := map[uint64]bool{}
	err := fs.WalkDir(t.root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		case len(files) >= maxTreeFiles:
			return errTooMany
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it has vanished
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Dev != t.dev || linked[st.Ino] {
			return nil
		}
		if st.Nlink > 1 {
			linked[st.Ino] = true
		}
		files = append(files, TreeFile{Path: path, Size: info.Size(), ino: st.Ino})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("files of layer %s: %w", t.name, err)
	}
	return files, nil
}

// errOther says that a file is not what was listed, or not its content.
var errOther = errors.New("the file is not the one that was listed, or has its content elsewhere")

// OpenFile opens a listed file and returns it with the identity that an overlay
// reports for it; see [Tree.Predict].
func (t *Tree) OpenFile(f *TreeFile) (*os.File, Identity, error) {
	const flags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOATIME
	file, err := t.root.OpenFile(f.Path, os.O_RDONLY|flags, 0)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("layer %s: %w", t.name, err)
	}
	var st unix.Stat_t
	fd := int(file.Fd())
	err = ignoringEINTR(func() error { return unix.Fstat(fd, &st) })
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Dev != t.dev || st.Ino != f.ino || st.Size != f.Size || hasMetacopy(fd)) {
		err = errOther
	}
	var id Identity
	if err == nil {
		id, err = t.Predict(fd)
	}
	if err != nil {
		return nil, Identity{}, errors.Join(fmt.Errorf("%s in layer %s: %w", f.Path, t.name, err), file.Close())
	}
	return file, id, nil
}

// hasMetacopy reports whether the open file holds only metadata: its content is in a
// layer further down.
func hasMetacopy(fd int) bool {
	for _, name := range []string{"trusted.overlay.metacopy", "user.overlay.metacopy"} {
		if _, err := unix.Fgetxattr(fd, name, nil); err == nil {
			return true
		}
	}
	return false
}

// Predict returns the identity that an overlay on this layer reports for the layer's
// open file fd, as long as nobody has changed it there: the overlay's handle wraps
// the file's own, and inode number, times and size are the file's. That holds if
// all directories of the overlay are on one filesystem, and it has its UUID in its
// handles (the mount option uuid is not off).
//
// A wrong prediction costs a scan and never lends a verdict: whatever is predicted
// has the handle, the times and the size of the very file that is scanned, so a file
// of a container can only have this identity by being this one.
func (t *Tree) Predict(fd int) (Identity, error) {
	var f facts
	if err := f.observe(fd); err != nil {
		return Identity{}, err
	}
	// Without the flag: the kernel embeds the handle that it could open.
	if err := f.handle.of(fd, 0); err != nil {
		return Identity{}, err
	}
	if !f.hasBirthTime() || f.handle.size == 0 {
		return Identity{}, errors.New("the filesystem has no handles or no birth times")
	}
	f.handle.wrap(t.uuid)
	return f.identity(), nil
}
