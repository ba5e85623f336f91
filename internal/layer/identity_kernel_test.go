package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// changes are the ways to change a file, its attributes or what stands at its
// path. Each gets the path of a file with the content "content" and of another
// file next to it.
func changes() map[string]func(p, other string) error {
	return map[string]func(p, other string) error{
		"rewrite in place": func(p, _ string) error { return pwrite(p, "CONTENT", 0) },
		"append":           func(p, _ string) error { return pwrite(p, "more", 7) },
		"truncate":         func(p, _ string) error { return os.Truncate(p, 3) },
		"truncate to the same size": func(p, _ string) error {
			return errors.Join(os.Truncate(p, 0), os.Truncate(p, 7))
		},
		"chmod": func(p, _ string) error { return os.Chmod(p, 0o700) },
		"chown": func(p, _ string) error { return os.Chown(p, 1, 1) },
		"touch": func(p, _ string) error { return os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)) },
		"touch to what it was": func(p, _ string) error {
			info, err := os.Stat(p)
			return errors.Join(err, os.Chtimes(p, info.ModTime(), info.ModTime()))
		},
		"rewrite with the old mtime": func(p, _ string) error {
			info, err := os.Stat(p)
			return errors.Join(err, pwrite(p, "CONTENT", 0), os.Chtimes(p, info.ModTime(), info.ModTime()))
		},
		"hard link": func(p, _ string) error { return os.Link(p, p+".link") },
		"rename away and back": func(p, _ string) error {
			return errors.Join(os.Rename(p, p+".away"), os.Rename(p+".away", p))
		},
		"another file in its place": func(p, other string) error { return os.Rename(other, p) },
		"exchanged with another": func(p, other string) error {
			return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
		},
		"removed and made again": func(p, _ string) error {
			info, err := os.Stat(p)
			return errors.Join(err, os.Remove(p), os.WriteFile(p, []byte("content"), 0o644),
				os.Chtimes(p, info.ModTime(), info.ModTime()))
		},
		"store through a mapping": func(p, _ string) error { return mapped(p, "CONTENT") },
	}
}

// pwrite opens an existing file for writing and writes at an offset.
func pwrite(path, content string, offset int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), offset)
	return errors.Join(err, f.Close())
}

// mapped changes a file through a shared mapping.
func mapped(path, content string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, content)
	return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
}

// TestKernelIdentityChanges: whatever could mean other content means another
// identity, on an overlay (where it means a copy-up), on ext4 and on tmpfs; and
// reading does not. Without btime and ctime in the identity, it fails.
func TestKernelIdentityChanges(t *testing.T) {
	tmpfs := t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	places := map[string]func(t *testing.T) (dir string){
		"host":  (*testing.T).TempDir,
		"tmpfs": func(*testing.T) string { return tmpfs },
		"overlay": func(t *testing.T) string {
			t.Helper()
			s := &stack{lower: layerDirs(t, 1)}
			for name := range changes() {
				write(t, filepath.Join(s.lower[0], name), "content")
				write(t, filepath.Join(s.lower[0], name+".other"), "content")
			}
			return s.mount(t).merged
		},
	}
	for place, make := range places {
		t.Run(place, func(t *testing.T) {
			dir := make(t)
			for name, change := range changes() {
				p, other := filepath.Join(dir, name), filepath.Join(dir, name+".other")
				if place != "overlay" {
					write(t, p, "content")
					write(t, other, "content")
				}
				before := identify(t, p)
				if _, err := os.ReadFile(p); err != nil || identify(t, p) != before {
					t.Fatalf("%s: reading changes the identity, or fails: %v", name, err)
				}
				if before == identify(t, other) {
					t.Fatalf("%s: two files have one identity", name)
				}
				if err := change(p, other); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if identify(t, p) == before {
					t.Errorf("%s: the identity stays", name)
				}
			}
		})
	}
}

// TestKernelIdentityShared: through every overlay that has the layer, a file has
// the same identity, whatever else is stacked there; and through no other.
func TestKernelIdentityShared(t *testing.T) {
	tmpfs := t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	dirs := append(layerDirs(t, 3), filepath.Join(tmpfs, "lower"))
	write(t, filepath.Join(dirs[1], "file"), "content")
	write(t, filepath.Join(dirs[2], "same"), "content")
	write(t, filepath.Join(dirs[3], "memory"), "content")
	one := (&stack{lower: dirs[1:2]}).mount(t)
	two := (&stack{lower: dirs[:3]}).mount(t)
	readOnly := (&stack{lower: dirs[:3], readOnly: true}).mount(t)
	mixed := (&stack{lower: dirs}).mount(t)
	mixedToo := (&stack{lower: dirs[1:]}).mount(t)
	id := identify(t, filepath.Join(one.merged, "file"))
	for name, s := range map[string]*stack{"deeper": two, "read-only": readOnly, "several filesystems": mixed} {
		if identify(t, filepath.Join(s.merged, "file")) != id {
			t.Errorf("%s: another identity for the same lower file", name)
		}
	}
	if identify(t, filepath.Join(mixed.merged, "memory")) != identify(t, filepath.Join(mixedToo.merged, "memory")) {
		t.Error("tmpfs: another identity for the same lower file")
	}
	if identify(t, filepath.Join(two.merged, "same")) == id {
		t.Error("two files have one identity")
	}
	if identify(t, filepath.Join(dirs[1], "file")) == id {
		t.Error("the layer's file itself passes for the overlay's")
	}
}

// TestKernelIdentityHardLinks: two names of one lower inode that are both copied up
// keep its handle, although they are two files now. What tells them apart even if
// their times are equal, as before multigrain timestamps (6.13), is the inode
// number.
func TestKernelIdentityHardLinks(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	write(t, filepath.Join(s.lower[0], "a"), "content")
	must(t, os.Link(filepath.Join(s.lower[0], "a"), filepath.Join(s.lower[0], "b")))
	s.mount(t)
	var a, b facts
	for name, f := range map[string]*facts{"a": &a, "b": &b} {
		must(t, os.Truncate(filepath.Join(s.merged, name), 8))
		must(t, f.observe(open(t, filepath.Join(s.merged, name))))
	}
	if a.handle != b.handle || a.stat.Ino == b.stat.Ino {
		t.Fatalf("want equal handles and different inode numbers: %+v and %+v", a, b)
	}
	b.stat.Btime, b.stat.Ctime = a.stat.Btime, a.stat.Ctime
	if a.identity() == b.identity() {
		t.Error("with equal times two files have one identity")
	}
}

// TestKernelIdentityWithoutHandle: an overlay over overlays has no handles that
// name the file behind. Its identity holds for this overlay alone.
func TestKernelIdentityWithoutHandle(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, filepath.Join(dirs[0], "file"), "content")
	below := (&stack{lower: dirs}).mount(t)
	tmpfs := t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	// Nor has its layer's file one that could be opened.
	h := handle{kind: 1, size: 1}
	if err := h.of(open(t, below.merged+"/file"), 0); err != nil || h.kind != 0 || len(h.data()) != 0 {
		t.Errorf("%+v, %v, want no handle and no error", h, err)
	}
	var ids []Identity
	for i := range 2 {
		s := (&stack{lower: []string{below.merged}, base: filepath.Join(tmpfs, fmt.Sprint(i))}).mount(t)
		id := identify(t, filepath.Join(s.merged, "file"))
		s.wantNot(t, "file", NoHandle)
		must(t, os.Chmod(filepath.Join(s.merged, "file"), 0o700))
		if identify(t, filepath.Join(s.merged, "file")) == id {
			t.Error("a copy-up keeps the identity")
		}
		ids = append(ids, id)
	}
	if ids[0] == ids[1] {
		t.Error("without a handle of the file behind, two overlays give one identity")
	}
}

func TestIdentifyWithoutFile(t *testing.T) {
	if id, err := Identify(-1); !errors.Is(err, unix.EBADF) || !id.IsZero() || id.String() != "" {
		t.Errorf("%v, %v", id, err)
	}
	var fds [2]int
	must(t, unix.Pipe2(fds[:], unix.O_CLOEXEC))
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	one, err := Identify(fds[0])
	if err != nil || one.IsZero() || len(one.String()) != 2*identitySize || IdentityOf(one.Bytes()) != one {
		t.Errorf("a pipe: %v, %v", one, err)
	}
}

// TestDirFields: each of the facts is part of a directory's identity, but not what
// changes when something is put into it.
func TestDirFields(t *testing.T) {
	type change = func(f *facts, fs *unix.Statfs_t)
	of := func(c change) Dir {
		f, fs := facts{stat: unix.Statx_t{Mask: statxMask, Ino: 7}}, unix.Statfs_t{}
		f.handle.size, f.handle.kind = 8, 1
		c(&f, &fs)
		return f.dir(&fs)
	}
	base := of(func(*facts, *unix.Statfs_t) {})
	for name, c := range map[string]change{
		"handle":             func(f *facts, _ *unix.Statfs_t) { f.handle.bytes[7]++ },
		"inode number":       func(f *facts, _ *unix.Statfs_t) { f.stat.Ino++ },
		"birth, seconds":     func(f *facts, _ *unix.Statfs_t) { f.stat.Btime.Sec++ },
		"birth, nanoseconds": func(f *facts, _ *unix.Statfs_t) { f.stat.Btime.Nsec++ },
		"filesystem's type":  func(_ *facts, fs *unix.Statfs_t) { fs.Type++ },
		"filesystem":         func(_ *facts, fs *unix.Statfs_t) { fs.Fsid.Val[0]-- },
		"filesystem, rest":   func(_ *facts, fs *unix.Statfs_t) { fs.Fsid.Val[1]-- },
	} {
		if of(c) == base {
			t.Errorf("%s: not part of the identity", name)
		}
	}
	if of(func(f *facts, _ *unix.Statfs_t) { f.stat.Ctime.Sec++; f.stat.Size++ }) != base {
		t.Error("what is in the directory is part of its identity")
	}
}

// TestIdentityFields: each of the facts is part of the identity, and the device
// exactly where the handle does not name the filesystem.
func TestIdentityFields(t *testing.T) {
	base := facts{stat: unix.Statx_t{Mask: statxMask, Ino: 7, Size: 9, Dev_major: 1, Dev_minor: 2}}
	base.handle.size, base.handle.kind = 8, 1
	for name, change := range map[string]func(f *facts){
		"handle":             func(f *facts) { f.handle.bytes[7]++ },
		"length of handle":   func(f *facts) { f.handle.size++ },
		"type of handle":     func(f *facts) { f.handle.kind++ },
		"major number":       func(f *facts) { f.stat.Dev_major++ },
		"minor number":       func(f *facts) { f.stat.Dev_minor++ },
		"inode number":       func(f *facts) { f.stat.Ino++ },
		"birth, seconds":     func(f *facts) { f.stat.Btime.Sec++ },
		"birth, nanoseconds": func(f *facts) { f.stat.Btime.Nsec++ },
		"no birth time":      func(f *facts) { f.stat.Mask &^= unix.STATX_BTIME },
		"change":             func(f *facts) { f.stat.Ctime.Sec++ },
		"change, nanosecond": func(f *facts) { f.stat.Ctime.Nsec++ },
		"size":               func(f *facts) { f.stat.Size++ },
	} {
		f := base
		change(&f)
		if f.identity() == base.identity() {
			t.Errorf("%s: not part of the identity", name)
		}
	}
	overlay := base
	overlay.handle.kind = typeOverlay
	elsewhere := overlay
	elsewhere.stat.Dev_minor++
	if overlay.identity() != elsewhere.identity() {
		t.Error("the device of an overlay is part of the identity")
	}
}

func TestIdentifyDoesNotAllocate(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Identify(fd); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for one identity, want none", n)
	}
}
