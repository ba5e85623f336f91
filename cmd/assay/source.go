package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// stdinName stands for standard input on the command line, and in what is shown.
const stdinName = "-"

// openFile opens a regular file for reading. It looks before it opens: opening a
// FIFO would wait for a writer, opening a device may do things.
func openFile(path string) (*os.File, error) {
	fd, err := retryEINTR(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, openFailure(path, err)
	}
	look := os.NewFile(uintptr(fd), path)
	defer func() { _ = look.Close() }() // no descriptor of a file's content
	info, err := look.Stat()
	if err != nil {
		return nil, openFailure(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, usage("name regular files; for a directory: find DIR -type f -exec assay check {} +",
			"%s is a %s, only regular files are scanned", path, kind(info.Mode()))
	}
	file, err := reopen(look, path)
	if err != nil {
		return nil, openFailure(path, err)
	}
	return file, nil
}

// openStdin returns another descriptor of standard input if that is a regular
// file, else an unlinked temporary file with all that could be read from it.
func openStdin(stdin *os.File) (*os.File, error) {
	const redirect = "redirect a file or a pipe to standard input"
	info, err := stdin.Stat()
	switch {
	case err != nil:
		return nil, usage(redirect, "standard input: %w", err)
	case info.IsDir():
		return nil, usage(redirect, "standard input is a directory")
	case info.Mode().IsRegular():
		fd, err := retryEINTR(func() (int, error) { return unix.FcntlInt(stdin.Fd(), unix.F_DUPFD_CLOEXEC, 0) })
		if err != nil {
			return nil, usage(redirect, "standard input: %w", err)
		}
		return os.NewFile(uintptr(fd), stdinName), nil
	}
	file, err := spool(stdin)
	if err != nil {
		return nil, usage("make room in the directory for temporary files, or point TMPDIR to another one",
			"standard input could not be spooled: %w", err)
	}
	return file, nil
}

// spool copies r to a temporary file that has no name any more, and returns it
// open for reading only.
func spool(r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp("", "assay-check-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the copy for reading shows whether all was written
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, r); err != nil {
		return nil, err
	}
	return reopen(f, stdinName)
}

// reopen opens the file behind f once more, for reading, and calls it name. O_NONBLOCK, so that a
// lease on it that somebody holds is an error and not a wait.
func reopen(f *os.File, name string) (*os.File, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// retryEINTR repeats a call until a signal does not interrupt it.
func retryEINTR(call func() (int, error)) (int, error) {
	for {
		fd, err := call()
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openFailure says why path cannot be opened, and what to do.
func openFailure(path string, err error) error {
	remedy := "check the path"
	switch {
	case errors.Is(err, unix.EPERM):
		remedy = "the file may lie in a guarded container whose tenant denies it: see \"assay events --decision deny\""
	case errors.Is(err, fs.ErrPermission):
		remedy = "run the command as a user who may read the file"
	case errors.Is(err, unix.EAGAIN):
		remedy = "a process holds a lease on the file; try again"
	}
	return usage(remedy, "%s cannot be opened: %w", path, err)
}

// kind names a file type.
func kind(mode fs.FileMode) string {
	switch mode.Type() {
	case fs.ModeDir:
		return "directory"
	case fs.ModeNamedPipe:
		return "FIFO"
	case fs.ModeSocket:
		return "socket"
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return "device"
	default:
		return "special file"
	}
}
