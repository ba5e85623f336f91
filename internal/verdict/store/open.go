package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The names in the store's directory.
const (
	fileName    = "verdicts"
	newName     = "verdicts.new"     // being written, to replace the file
	damagedName = "verdicts.damaged" // a file whose beginning did not verify, for whoever wants to look
	lockName    = "lock"
)

// A directory is the store's place on disk, held under a lock.
type directory struct {
	root     *os.Root
	lock     *os.File // nil on a read-only filesystem without a lock file
	readOnly bool
}

// openDirectory makes the directory if need be, and locks it.
func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the verdict store: %w", classify(err))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("directory of the verdict store: %w", err)
	}
	d := &directory{root: root}
	if err := d.prepare(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *directory) prepare() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("directory of the verdict store: %w", err)
	}
	if err := trusted(info); err != nil {
		return err
	}
	d.lock, err = d.open(lockName, os.O_RDWR|os.O_CREATE)
	if errors.Is(err, unix.EROFS) {
		d.readOnly = true
		d.lock, err = d.open(lockName, os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("lock of the verdict store: %w", classify(err))
	}
	if err := flock(d.lock); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	} else if err != nil {
		return fmt.Errorf("lock of the verdict store: %w", err)
	}
	return nil
}

// flock takes the file's lock; it goes with the last descriptor.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// open opens a regular file that nobody else can have written. A FIFO in its
// place does not block.
func (d *directory) open(name string, flags int) (*os.File, error) {
	f, err := d.root.OpenFile(name, flags|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", ErrUntrusted, name)
	}
	if err == nil {
		err = trusted(info)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// trusted returns ErrUntrusted for what others own or may write.
func trusted(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: %s", ErrUntrusted, info.Name())
	}
	return nil
}

// sync makes names durable.
func (d *directory) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *directory) close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// create makes an empty file under newName.
func (d *directory) create(sums checksummer) (*os.File, fileID, error) {
	var id fileID
	_, _ = rand.Read(id[:]) // never fails
	if err := d.root.Remove(newName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, id, err
	}
	f, err := d.open(newName, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, id, err
	}
	if _, err := f.WriteAt(encodeHeader(sums, id), 0); err != nil {
		return nil, id, errors.Join(err, d.discard(f))
	}
	return f, id, nil
}

// install puts the file that create made, and that was written since, in the
// place of the old one.
func (d *directory) install(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := d.root.Rename(newName, fileName); err != nil {
		return err
	}
	_ = d.sync() // if not, a power failure can bring back the old file, which is as true
	return nil
}

// discard removes the file that create made.
func (d *directory) discard(f *os.File) error {
	return errors.Join(f.Close(), d.root.Remove(newName))
}

// load returns the store's file, its id and its size. A file that does not begin
// as one is put aside for a new one; damaged then says why. ErrNewerVersion
// leaves everything as it is.
func (d *directory) load(sums checksummer) (f *os.File, id fileID, size int64, damaged, err error) {
	f, err = d.openFile()
	if err == nil {
		id, size, err = readHeader(f, sums)
		if err == nil {
			return f, id, size, nil, nil
		}
		err = errors.Join(err, f.Close())
		if !errors.Is(err, ErrCorrupt) || d.readOnly {
			return nil, id, 0, nil, err
		}
		damaged = err
		err = d.root.Rename(fileName, damagedName)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, id, 0, nil, fmt.Errorf("verdict store: %w", classify(err))
	}
	if d.readOnly {
		return nil, id, 0, nil, ErrReadOnly
	}
	if f, id, err = d.create(sums); err != nil {
		return nil, id, 0, nil, fmt.Errorf("new verdict store: %w", classify(err))
	}
	if err := d.install(f); err != nil {
		return nil, id, 0, nil, errors.Join(fmt.Errorf("new verdict store: %w", classify(err)), f.Close())
	}
	return f, id, headerBytes, damaged, nil
}

func (d *directory) openFile() (*os.File, error) {
	if d.readOnly {
		return d.open(fileName, os.O_RDONLY)
	}
	return d.open(fileName, os.O_RDWR)
}

func readHeader(f *os.File, sums checksummer) (id fileID, size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return id, 0, err
	}
	h := make([]byte, headerBytes)
	if n, err := f.ReadAt(h, 0); err != nil && !errors.Is(err, io.EOF) {
		return id, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	} else if id, err = decodeHeader(sums, h[:n]); err != nil {
		return id, 0, err
	}
	return id, info.Size(), nil
}
