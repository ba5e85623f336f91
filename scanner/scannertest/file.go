package scannertest

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// EICAR returns the standard anti-virus test file of 68 bytes. It stands here
// backwards, so that no scanner takes this file or a test program for it.
func EICAR() []byte {
	content := []byte(`*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X`)
	slices.Reverse(content)
	return content
}

// FileOf returns a file with the given content, on a memory file whose only
// descriptor is open for reading. The descriptor is closed when the test ends.
func FileOf(tb testing.TB, content []byte) *scanner.File {
	tb.Helper()
	return memory(tb, int64(len(content)), content, unix.O_RDONLY)
}

// SparseFile returns a file of size bytes that are all zero and occupy no
// memory, open for reading until the test ends.
func SparseFile(tb testing.TB, size int64) *scanner.File {
	tb.Helper()
	return memory(tb, size, nil, unix.O_RDONLY)
}

// TempFile returns a file with the given content in a temporary directory, open
// for reading until the test ends, and its path.
func TempFile(tb testing.TB, content []byte) (f *scanner.File, path string) {
	tb.Helper()
	tmp, err := os.CreateTemp(tb.TempDir(), "sample")
	if err != nil {
		tb.Fatal(err)
	}
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Close()); err != nil {
		tb.Fatal(err)
	}
	return lend(tb, tmp.Name(), int64(len(content)), unix.O_RDONLY), tmp.Name()
}

// memory makes a memory file of size bytes that begins with content, and lends
// a descriptor opened with flags.
func memory(tb testing.TB, size int64, content []byte, flags int) *scanner.File {
	tb.Helper()
	fd, err := retry(func() (int, error) { return unix.MemfdCreate("sample", unix.MFD_CLOEXEC) })
	if err != nil {
		tb.Fatalf("memfd_create: %v", err)
	}
	whole := os.NewFile(uintptr(fd), "sample")
	defer whole.Close()
	if _, err := whole.WriteAt(content, 0); err != nil {
		tb.Fatal(err)
	}
	if err := whole.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	return lend(tb, "/proc/self/fd/"+strconv.Itoa(fd), size, flags)
}

// lend opens path and closes the descriptor when the test ends.
func lend(tb testing.TB, path string, size int64, flags int) *scanner.File {
	tb.Helper()
	fd, err := retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		tb.Fatalf("open %s: %v", path, err)
	}
	tb.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			tb.Errorf("closing the lent descriptor: %v; the scanner closed what it was only lent", err)
		}
	})
	return &scanner.File{FD: fd, Size: size, Path: "/sample", PID: os.Getpid()}
}

// retry calls fn until it is not interrupted by a signal.
func retry(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
