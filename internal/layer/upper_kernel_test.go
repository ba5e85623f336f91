package layer

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// openUpper opens what is behind a file of the stack, which is said to be at hint.
func openUpper(tb testing.TB, r *Rootfs, fd int, hint string) (int, Reason) {
	tb.Helper()
	id, err := Identify(fd)
	must(tb, err)
	upper, reason, err := r.OpenUpper(fd, id, hint)
	must(tb, err)
	if (upper >= 0) != (reason == InUpper) {
		tb.Fatalf("%s: %s with descriptor %d", hint, reason, upper)
	}
	if upper >= 0 {
		tb.Cleanup(func() { _ = unix.Close(upper) })
	}
	return upper, reason
}

// wantUpper fails t unless the file behind is reached, and returns it.
func (s *stack) wantUpper(tb testing.TB, name string) (overlay, upper int) {
	tb.Helper()
	overlay = open(tb, filepath.Join(s.merged, name))
	upper, reason := openUpper(tb, s.rootfs, overlay, "/"+name)
	if reason != InUpper {
		tb.Fatalf("%s: %s, want in-upper", name, reason)
	}
	return overlay, upper
}

// lease reports whether there is a writer: it takes a read lease and gives it back.
func lease(tb testing.TB, fd int) error {
	tb.Helper()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return err
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	must(tb, err)
	return nil
}

// mapShared maps a file for writing and closes it. It returns what ends that.
func mapShared(tb testing.TB, path string) (end func()) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(tb, err)
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(tb, err)
	must(tb, f.Close())
	m[0] = 'X'
	return func() { must(tb, unix.Munmap(m)) }
}

// TestKernelUpperMappedWriter: who has closed its descriptor and kept a mapping
// can still write. The overlay's own file does not know; the inode in the upper
// directory does. If the first lease below ever fails, the kernel has learnt it.
func TestKernelUpperMappedWriter(t *testing.T) {
	signal.Ignore(syscall.SIGIO)
	defer signal.Reset(syscall.SIGIO)
	tmpfs := t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	for mode, s := range map[string]*stack{
		"plain":      {},
		"metacopy":   {options: ",metacopy=on,redirect_dir=on"},
		"index":      {options: ",index=on"},
		"nfs export": {options: ",index=on,nfs_export=on"},
		"userxattr":  {options: ",userxattr"},
		"no uuid":    {options: ",uuid=off"},
		"tmpfs":      {base: tmpfs},
	} {
		t.Run(mode, func(t *testing.T) {
			s.lower = layerDirs(t, 1)
			write(t, s.lower[0]+"/dir/copied", "content")
			write(t, s.lower[0]+"/dir/before", "content")
			s.mount(t)
			must(t, os.Chmod(s.merged+"/dir/before", 0o700))
			write(t, s.merged+"/dir/born", "content")
			for _, name := range []string{"dir/born", "dir/copied", "dir/before"} {
				end := mapShared(t, filepath.Join(s.merged, name))
				overlay, upper := s.wantUpper(t, name)
				if err := lease(t, overlay); err != nil {
					t.Errorf("%s: lease on the overlay's file: %v, want none, which is why OpenUpper exists", name, err)
				}
				if err := lease(t, upper); !errors.Is(err, unix.EAGAIN) {
					t.Errorf("%s: mapped, lease on the upper inode: %v, want EAGAIN", name, err)
				}
				end()
				_, upper = s.wantUpper(t, name)
				if err := lease(t, upper); err != nil {
					t.Errorf("%s: unmapped, lease on the upper inode: %v", name, err)
				}
			}
		})
	}
}

// TestKernelUpperMoved: a file is found where it is now, and one that was born in
// the container also where it has no name.
func TestKernelUpperMoved(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1), options: ",redirect_dir=on,index=off"}
	for _, name := range []string{"dir/copied", "a", "deleted", "other/x"} {
		write(t, filepath.Join(s.lower[0], name), "content")
	}
	must(t, os.Link(s.lower[0]+"/a", s.lower[0]+"/b"))
	s.mount(t)
	write(t, s.merged+"/born", "content")
	must(t, os.Rename(s.merged+"/born", s.merged+"/renamed"))
	must(t, os.Link(s.merged+"/renamed", s.merged+"/linked"))
	must(t, pwrite(s.merged+"/dir/copied", "CONTENT", 0))
	must(t, os.Link(s.merged+"/dir/copied", s.merged+"/alias"))
	must(t, os.Rename(s.merged+"/dir", s.merged+"/moved"))
	must(t, pwrite(s.merged+"/a", "CONTENT", 0))
	must(t, pwrite(s.merged+"/b", "CONTENT", 0))
	inodes := map[uint64][]string{}
	for _, name := range []string{"renamed", "linked", "moved/copied", "alias", "a", "b"} {
		_, upper := s.wantUpper(t, name)
		var st unix.Stat_t
		must(t, unix.Fstat(upper, &st))
		inodes[st.Ino] = append(inodes[st.Ino], name)
		if got, want := readFD(t, upper), readFD(t, open(t, filepath.Join(s.upper, name))); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(inodes) != 4 {
		t.Errorf("%v, want four different files", inodes)
	}

	must(t, pwrite(s.merged+"/deleted", "CONTENT", 0))
	deleted, born := open(t, s.merged+"/deleted"), open(t, s.merged+"/linked")
	must(t, errors.Join(os.Remove(s.merged+"/deleted"), os.Remove(s.merged+"/linked"), os.Remove(s.merged+"/renamed")))
	if _, reason := openUpper(t, s.rootfs, deleted, "/deleted"); reason != Hidden {
		t.Errorf("deleted, a whiteout is there: %s, want hidden", reason)
	}
	if _, reason := openUpper(t, s.rootfs, deleted, "/deleted (deleted)"); reason != NotInUpper {
		t.Errorf("deleted: %s, want not-in-upper", reason)
	}
	if _, reason := openUpper(t, s.rootfs, born, "/linked (deleted)"); reason != InUpper {
		t.Errorf("born and deleted, still open: %s, want in-upper", reason)
	}
}

// readFD returns the beginning of an open file.
func readFD(t *testing.T, fd int) string {
	t.Helper()
	buf := make([]byte, 64)
	n, err := unix.Pread(fd, buf, 0)
	must(t, err)
	return string(buf[:n])
}

// TestKernelUpperForgotten: a copied-up file keeps its handle, or gets one of its
// own, when the kernel has forgotten the inode; it is found either way.
func TestKernelUpperForgotten(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	write(t, s.lower[0]+"/file", "content")
	s.mount(t)
	must(t, pwrite(s.merged+"/file", "CONTENT", 0))
	// Nothing of the first mount stays open.
	t.Run("remembered", func(t *testing.T) { s.wantUpper(t, "file") })
	must(t, unix.Unmount(s.merged, 0))
	s.mount(t)
	s.wantUpper(t, "file")
}

// TestKernelUpperReplaced: whatever a tenant does at the path meanwhile, what comes
// back is the file's own inode or nothing.
func TestKernelUpperReplaced(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	write(t, s.lower[0]+"/one/file", "content")
	write(t, s.lower[0]+"/two/file", "content")
	s.mount(t)
	must(t, pwrite(s.merged+"/one/file", "CONTENT", 0))
	must(t, pwrite(s.merged+"/two/file", "content", 0))
	fd := open(t, s.merged+"/one/file")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, s.upper+"/one", unix.AT_FDCWD, s.upper+"/two", unix.RENAME_EXCHANGE); err != nil {
				done <- err
				return
			}
		}
	}()
	seen := map[Reason]int{}
	for range 2000 {
		upper, reason, err := s.rootfs.OpenUpper(fd, identifyFD(t, fd), "/one/file")
		must(t, err)
		seen[reason]++
		if reason == InUpper {
			if got := readFD(t, upper); got != "CONTENT" {
				t.Errorf("another file: %q", got)
			}
			must(t, unix.Close(upper))
		}
	}
	close(stop)
	must(t, <-done)
	if seen[InUpper] == 0 || seen[InUpper]+seen[OtherFile] != 2000 {
		t.Errorf("%v, want in-upper and other-file", seen)
	}
}

func identifyFD(t *testing.T, fd int) Identity {
	t.Helper()
	id, err := Identify(fd)
	must(t, err)
	return id
}
