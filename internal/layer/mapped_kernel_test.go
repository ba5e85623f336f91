package layer

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelMappedStoreChangesTime: on ext4 the first store through a new writable
// mapping changes the change time, also if the page is dirty already, or was read
// through that mapping before; in a file of an overlay on it as well. On tmpfs it
// does not if the page was read: so nothing on a tmpfs is remembered.
func TestKernelMappedStoreChangesTime(t *testing.T) {
	tmpfs, s := t.TempDir(), (&stack{lower: layerDirs(t, 1)}).mount(t)
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	ext4 := t.TempDir()
	var fs unix.Statfs_t
	must(t, unix.Statfs(ext4, &fs))
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Logf("not ext4 but %#x", fs.Type)
	}
	for _, test := range []struct {
		name, dir     string
		dirty, loaded bool
		changes       bool
	}{
		{"ext4", ext4, false, false, true},
		{"ext4, dirty", ext4, true, false, true},
		{"ext4, read", ext4, false, true, true},
		{"ext4, dirty and read", ext4, true, true, true},
		{"overlay, dirty and read", s.merged, true, true, true},
		{"tmpfs", tmpfs, false, false, true},
		{"tmpfs, read", tmpfs, false, true, false},
	} {
		path := filepath.Join(test.dir, "file")
		write(t, path, "content")
		if test.dirty {
			first := writableMap(t, path)
			first[0] = 'C'
			defer func() { must(t, unix.Munmap(first)) }() // it stays dirty, and mapped
		}
		m := writableMap(t, path)
		defer func() { must(t, unix.Munmap(m)) }()
		if test.loaded && m[1] != 'o' {
			t.Fatalf("%s: the mapping has %q", test.name, m)
		}
		before := identify(t, path)
		later(t, test.dir)
		m[2] = 'N'
		if changed := identify(t, path) != before; changed != test.changes {
			t.Errorf("%s: a store through a new mapping changes the identity: %v, want %v", test.name, changed, test.changes)
		}
	}
}

// writableMap maps a file and keeps no descriptor.
func writableMap(t *testing.T, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, len("content"), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	return m
}

// later waits until a change in dir has a later time than one before.
func later(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "clock")
	stamp := func() unix.Timespec {
		var st unix.Stat_t
		must(t, unix.Fchmodat(unix.AT_FDCWD, path, 0o600, 0))
		must(t, unix.Stat(path, &st))
		return st.Ctim
	}
	write(t, path, "")
	for first := stamp(); stamp() == first; {
	}
}
