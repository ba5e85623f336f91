package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A check says what is wrong with what stands at the end of a path, or nil.
type check func(path string, info fs.FileInfo) error

// checkProgram makes sure that the file is a program that only root can change,
// because a runtime will start it as root for every container.
func checkProgram(path string, info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file (give the path of a program)", path)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable (chmod 755 %s)", path, path)
	}
	return checkWritable(path, info)
}

// checkDir makes sure that only root decides what is in the directory.
func checkDir(path string, info fs.FileInfo) error {
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	return checkWritable(path, info)
}

// checkAncestor is checkDir for the directories on the way. A sticky one, like
// /tmp, may be open to others: they cannot replace what root put there.
func checkAncestor(path string, info fs.FileInfo) error {
	if info.IsDir() && info.Mode()&os.ModeSticky != 0 {
		return nil
	}
	return checkDir(path, info)
}

func checkWritable(path string, info fs.FileInfo) error {
	if info.Mode()&0o022 != 0 {
		return fmt.Errorf("%s can be changed by others than root (chmod go-w %s)", path, path)
	}
	return nil
}

// checkExisting is checkPath for path or, while that does not exist, for the
// nearest directory above it that does.
func checkExisting(path string, last check) error {
	err := checkPath(path, last)
	if errors.Is(err, fs.ErrNotExist) && path != "/" {
		return checkExisting(filepath.Dir(path), last)
	}
	return err
}

// maxLinks is how many symbolic links the kernel follows (path_resolution(7)).
const maxLinks = 40

// checkPath walks the absolute path as the kernel would and makes sure that
// nobody but root can lead it elsewhere: every directory and symbolic link on
// the way must be root's, as must be the end, to which last applies.
func checkPath(path string, last check) error {
	at, left, links := "/", components(path), 0
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return fmt.Errorf("check who can change %s: %w", path, err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 {
			return fmt.Errorf("%s does not belong to root (chown -h root:root %s)", at, at)
		}
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			if links++; links > maxLinks {
				return fmt.Errorf("%s has too many symbolic links", path)
			}
			target, err := os.Readlink(at)
			if err != nil {
				return fmt.Errorf("check who can change %s: %w", path, err)
			}
			left = append(components(target), left...)
			at = filepath.Dir(at)
			if filepath.IsAbs(target) {
				at = "/"
			}
		case len(left) == 0:
			return last(at, info)
		default:
			if err := checkAncestor(at, info); err != nil {
				return err
			}
			at, left = filepath.Join(at, left[0]), left[1:]
		}
	}
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// replaceFile puts content at path, whole or not at all, also across a crash.
func replaceFile(path string, content []byte, mode fs.FileMode) (err error) {
	// Readers of the directories only look at *.json and *.toml, or at programs.
	f, err := os.CreateTemp(filepath.Dir(path), ".assay-*.tmp")
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// maxOwn bounds a file that is read back, in bytes.
const maxOwn = 1 << 20

// readOwn returns the content of a file for which ours holds, nil if there is no
// file, or an error that wraps ErrForeign.
func readOwn(path string, ours func([]byte) bool) ([]byte, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for an earlier installation: %w", err)
	}
	foreign := fmt.Errorf("%s is %w (move it away if it is no longer needed)", path, ErrForeign)
	if !info.Mode().IsRegular() || info.Size() > maxOwn {
		return nil, foreign
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("look for an earlier installation: %w", err)
	}
	if !ours(data) {
		return nil, foreign
	}
	return data, nil
}

// makeDir makes the directory if needed, and sure that only root decides what is in it.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the directory: %w", err)
	}
	// Once more, in case that somebody else has just created it.
	return checkPath(dir, checkDir)
}

// syncDir makes a change of the directory's names last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	return nil
}
