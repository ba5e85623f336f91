package layer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// onOverlay mounts an overlay with a file of a layer and finds its layers.
func onOverlay(t *testing.T) (kerneltest.Overlay, *Rootfs) {
	t.Helper()
	o := kerneltest.NewOverlay(t, map[string]string{"dir/low": "of the layer", "dir/other": "of the layer"})
	r, err := hostTree(t).Rootfs(t.Context(), mountAt(t, o.Merged), nil)
	if err != nil {
		t.Fatal(err)
	}
	return o, r
}

// openUpper opens the file behind an overlay's, as an event's descriptor would have it.
func openUpper(t *testing.T, r *Rootfs, path, hint string) (int, error) {
	t.Helper()
	fd := open(t, path)
	defer unix.Close(fd)
	id, onRootfs, err := r.Owns(fd)
	if err != nil || !onRootfs {
		t.Fatalf("%s: on the root filesystem: %v, %v", path, onRootfs, err)
	}
	return r.OpenUpper(fd, id, hint)
}

// leases reports whether a read lease can be had on a file.
func leases(t *testing.T, fd int) bool {
	t.Helper()
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil
}

// TestKernelMappedWriter shows the hole in a lease on an overlay file, and that the
// inode behind it closes it: a writer that kept a mapping and no descriptor.
func TestKernelMappedWriter(t *testing.T) {
	o, r := onOverlay(t)
	born := o.Path("dir/born")
	if err := os.WriteFile(born, []byte("of the container"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"born": born, "copied up": o.Path("dir/low")} {
		w, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		page, err := unix.Mmap(w, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(w); err != nil {
			t.Fatal(err)
		}
		fd := open(t, path)
		if !leases(t, fd) {
			t.Errorf("%s: the overlay's inode knows of the mapping on this kernel: the look behind it is not needed any more", name)
		}
		upper, err := openUpper(t, r, path, path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if leases(t, upper) {
			t.Errorf("%s: a lease although somebody can write", name)
		}
		if err := unix.Munmap(page); err != nil {
			t.Fatal(err)
		}
		if !leases(t, upper) {
			t.Errorf("%s: no lease although nobody can write any more", name)
		}
		_, _ = unix.Close(upper), unix.Close(fd)
	}
}

// TestKernelOpenUpper: the file behind the overlay's is found, or nothing is.
func TestKernelOpenUpper(t *testing.T) {
	o, r := onOverlay(t)
	write := func(name, content string) {
		if err := os.WriteFile(o.Path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("dir/born", "born")
	write("dir/low", "copied")
	found := func(path, hint, want string) {
		t.Helper()
		fd, err := openUpper(t, r, o.Path(path), hint)
		if err != nil {
			t.Errorf("%s by %s: %v", path, hint, err)
			return
		}
		defer unix.Close(fd)
		var buf [64]byte
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%s by %s: %q, %v", path, hint, buf[:n], err)
		}
	}
	lost := func(path, hint string) {
		t.Helper()
		if fd, err := openUpper(t, r, o.Path(path), hint); !errors.Is(err, ErrNoUpper) {
			_ = unix.Close(fd)
			t.Errorf("%s by %s: %v", path, hint, err)
		}
	}
	found("dir/born", "", "born") // by its handle
	found("dir/low", o.Path("dir/low"), "copied")
	found("dir/low", "/dir/low", "copied") // as seen after the pivot
	lost("dir/other", "/dir/other")        // still the layer's
	lost("dir/low", "/dir/born")
	lost("dir/low", "/dir/nothing")
	lost("dir/low", "")
	for name, make := range map[string]func(string) error{
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"device":  func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
		"symlink": func(p string) error { return os.Symlink("low", p) },
	} {
		if err := make(o.Path(filepath.Join("dir", name))); err != nil {
			t.Fatal(err)
		}
		lost("dir/low", "/dir/"+name)
	}
	if err := os.Rename(o.Path("dir/low"), o.Path("dir/renamed")); err != nil {
		t.Fatal(err)
	}
	found("dir/renamed", "/dir/renamed", "copied")
	lost("dir/renamed", "/dir/low")
}

func TestKernelOwnsDoesNotAllocate(t *testing.T) {
	o, r := onOverlay(t)
	fd := open(t, o.Path("dir/low"))
	defer unix.Close(fd)
	if n := testing.AllocsPerRun(100, func() {
		if _, on, err := r.Owns(fd); err != nil || !on {
			t.Error(on, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
