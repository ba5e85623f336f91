package layer

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelUpperHints: a hint says where to look and proves nothing; what is put
// at the path behind the overlay's back is not opened.
func TestKernelUpperHints(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	for _, name := range []string{"copied", "other", "pristine", "dir/x"} {
		write(t, filepath.Join(s.lower[0], name), "content")
	}
	s.mount(t)
	for _, name := range []string{"copied", "other", "dir/x"} {
		must(t, pwrite(filepath.Join(s.merged, name), "CONTENT", 0))
	}
	write(t, s.merged+"/born", "content")
	must(t, unix.Mkfifo(s.upper+"/fifo", 0o600))
	must(t, unix.Mknod(s.upper+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, os.Symlink("copied", s.upper+"/link"))
	must(t, os.Symlink(".", s.upper+"/here"))
	copied := open(t, s.merged+"/copied")
	for hint, want := range map[string]Reason{
		"/copied":               InUpper,
		s.merged + "/copied":    InUpper,
		"/other":                OtherFile,
		"/born":                 OtherFile,
		"/nothing":              NotInUpper,
		"/pristine":             NotInUpper,
		"/fifo":                 Hidden,
		"/device":               Hidden,
		"/link":                 Hidden,
		"/here/copied":          Hidden,
		"/copied/below":         Hidden,
		"/dir":                  Hidden,
		"/dir/../copied":        NoPath,
		"copied":                NoPath,
		"/" + longName(maxHint): NoPath,
	} {
		if _, reason := openUpper(t, s.rootfs, copied, hint); reason != want {
			t.Errorf("%.80s: %s, want %s", hint, reason, want)
		}
	}
	if _, reason := openUpper(t, s.rootfs, open(t, s.merged+"/born"), "/fifo"); reason != InUpper {
		t.Errorf("born, whatever the hint: %s, want in-upper", reason)
	}
	if _, reason := openUpper(t, s.rootfs, open(t, s.merged+"/pristine"), "/pristine"); reason != NotInUpper {
		t.Errorf("a file of the layer: %s, want not-in-upper", reason)
	}
	if _, reason := openUpper(t, s.rootfs, open(t, s.lower[0]+"/pristine"), "/copied"); reason != OtherMount {
		t.Errorf("a file of the host: %s, want other-mount", reason)
	}
	if _, reason := openUpper(t, s.rootfs, open(t, s.merged+"/dir"), "/dir"); reason != NotRegular {
		t.Errorf("a directory: %s, want not-regular", reason)
	}
	if _, reason, err := s.rootfs.OpenUpper(copied, identify(t, s.merged+"/born"), "/copied"); reason != Changed || err != nil {
		t.Errorf("another identity: %s, %v, want changed", reason, err)
	}
	if _, reason, err := s.rootfs.OpenUpper(-1, Identity{}, "/copied"); reason != Failed || !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %s, %v", reason, err)
	}
}

func longName(n int) string { return strings.Repeat("n", n) }

// TestKernelUpperReadOnly: without an upper directory there is nothing to open.
func TestKernelUpperReadOnly(t *testing.T) {
	dirs := layerDirs(t, 2)
	write(t, dirs[1]+"/pristine", "content")
	readOnly := (&stack{lower: dirs, readOnly: true}).mount(t)
	if _, reason := openUpper(t, readOnly.rootfs, open(t, readOnly.merged+"/pristine"), "/pristine"); reason != NotInUpper {
		t.Errorf("no upper directory: %s, want not-in-upper", reason)
	}
	if readOnly.rootfs.Writable() || readOnly.rootfs.UpperFS() != 0 {
		t.Errorf("read-only: writable, on %#x", readOnly.rootfs.UpperFS())
	}
}

// TestKernelOwns: files of the root filesystem are, others are not; no allocation.
func TestKernelOwns(t *testing.T) {
	s := &stack{lower: layerDirs(t, 2)}
	write(t, s.lower[0]+"/file", "content")
	write(t, s.lower[1]+"/copied", "content")
	s.mount(t)
	must(t, os.Chmod(s.merged+"/copied", 0o700))
	write(t, s.merged+"/born", "content")
	volume := filepath.Join(s.merged, "volume")
	mkdir(t, volume)
	kerneltest.Mount(t, "tmpfs", volume, "tmpfs", 0, "")
	write(t, volume+"/file", "content")
	for name, want := range map[string]bool{"file": true, "copied": true, "born": true, "volume/file": false} {
		fd := open(t, filepath.Join(s.merged, name))
		id, owns, err := s.rootfs.Owns(fd)
		if err != nil || owns != want || id != identifyFD(t, fd) {
			t.Errorf("%s: %v, %t, %v", name, id, owns, err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _, _ = s.rootfs.Owns(fd) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
	if _, _, err := s.rootfs.Owns(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
	if !s.rootfs.Writable() || s.rootfs.UpperFS() != fsOf(t, s.upper) {
		t.Errorf("writable %t, on %#x", s.rootfs.Writable(), s.rootfs.UpperFS())
	}
	var paths []string
	for i, dir := range s.rootfs.Dirs() {
		paths = append(paths, dir.Path)
		if dir.Layer != s.rootfs.Layers()[i] {
			t.Errorf("layer %d: %v", i, dir)
		}
	}
	if !slices.Equal(paths, s.lower) {
		t.Errorf("%q, want %q", paths, s.lower)
	}
}

func fsOf(t *testing.T, path string) int64 {
	t.Helper()
	var fs unix.Statfs_t
	must(t, unix.Statfs(path, &fs))
	return fs.Type
}
