package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// tree opens the directory of a layer.
func tree(tb testing.TB, h *Host, dir string) *Tree {
	tb.Helper()
	t, err := h.OpenLayer(dir)
	must(tb, err)
	tb.Cleanup(func() { must(tb, t.Close()) })
	return t
}

// list returns the files of a layer by path.
func list(tb testing.TB, t *Tree) map[string]File {
	tb.Helper()
	l, err := t.List(tb.Context(), 1<<20)
	must(tb, err)
	if l.Truncated {
		tb.Errorf("%s: truncated", t.path)
	}
	files := map[string]File{}
	for _, f := range l.Files {
		files[f.Path] = f
	}
	return files
}

// predicted returns the identity that a file of a layer will have.
func predicted(tb testing.TB, t *Tree, f File) Identity {
	tb.Helper()
	s, err := t.Open(f)
	must(tb, err)
	defer s.Close()
	if same, err := s.Unchanged(); err != nil || !same {
		tb.Errorf("%s: unchanged: %t, %v", f.Path, same, err)
	}
	return s.Identity()
}

// TestKernelPredict: the identity that is predicted from a layer is the one that
// overlays report, with any number of layers, until the file changes there.
func TestKernelPredict(t *testing.T) {
	tmpfs, disk, without := t.TempDir(), t.TempDir(), t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	mountDisk(t, disk, "random")
	mountDisk(t, without, "clear")
	for name, base := range map[string]string{
		"host": t.TempDir(), "tmpfs": tmpfs, "ext4 with a UUID": disk, "ext4 without a UUID": without,
	} {
		for _, n := range []int{1, 2, 63} {
			t.Run(fmt.Sprint(name, "/", n), func(t *testing.T) {
				base := filepath.Join(base, fmt.Sprint(n))
				s := &stack{base: base, relativeTo: base}
				var names []string
				for i := range n {
					names = append(names, fmt.Sprint(i))
					s.lower = append(s.lower, filepath.Join(base, names[i]))
					write(t, fmt.Sprintf("%s/dir/file%d", s.lower[i], i), "content")
				}
				s.lowerdir = strings.Join(names, ":")
				s.mount(t)
				for i, dir := range s.lower {
					s.wantPredicted(t, tree(t, s.host, dir), fmt.Sprintf("dir/file%d", i), i)
				}
			})
		}
	}
}

// wantPredicted fails t unless the layer at depth predicts the file's identity, and
// not that of the file after a copy-up.
func (s *stack) wantPredicted(t *testing.T, l *Tree, name string, depth int) {
	t.Helper()
	dir, err := l.Layer(t.Context())
	if err != nil || dir != s.rootfs.Dirs()[depth] {
		t.Errorf("layer %d: %v, %v, want %v", depth, dir, err, s.rootfs.Dirs()[depth])
	}
	if l.FS() != fsOf(t, l.path) {
		t.Errorf("on %#x", l.FS())
	}
	id := predicted(t, l, list(t, l)["/"+name])
	if got := identify(t, filepath.Join(s.merged, name)); got != id {
		t.Errorf("%s: predicted %s, the overlay reports %s", name, id, got)
	}
	if got := identify(t, filepath.Join(l.path, name)); got == id {
		t.Errorf("%s: predicted is the file's own identity", name)
	}
	s.wantPristine(t, name, depth)
	must(t, pwrite(filepath.Join(s.merged, name), "content", 0))
	if identify(t, filepath.Join(s.merged, name)) == id {
		t.Errorf("%s: a copy-up has the predicted identity", name)
	}
	write(t, s.merged+"/born", "content")
	if identify(t, s.merged+"/born") == id {
		t.Error("a file of the container has the predicted identity")
	}
}

// mountDisk mounts a new ext4 filesystem with a UUID as mkfs.ext4 takes it.
func mountDisk(t *testing.T, at, uuid string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	write(t, image, "")
	must(t, os.Truncate(image, 64<<20))
	for _, command := range [][]string{{"mkfs.ext4", "-q", "-U", uuid, image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { must(t, unix.Unmount(at, 0)) })
}

// TestKernelPredictRefuses: nothing is predicted where overlays have no handles, or
// the filesystem has no UUID.
func TestKernelPredictRefuses(t *testing.T) {
	h := hostTree(t)
	dirs := layerDirs(t, 1)
	write(t, dirs[0]+"/file", "content")
	s := (&stack{lower: dirs}).mount(t)
	for name, dir := range map[string]string{"an overlay": s.merged, "procfs": "/proc/self/task"} {
		if l, err := h.OpenLayer(dir); err == nil || name == "an overlay" && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %+v, %v, want not supported", name, l, err)
		}
	}
	for name, dir := range map[string]string{"nothing": dirs[0] + "/nothing", "a file": dirs[0] + "/file"} {
		if l, err := h.OpenLayer(dir); err == nil {
			t.Errorf("%s: %+v, want an error", name, l)
		}
	}
}

// TestKernelWalk: regular files only, one name of each, the smallest first.
func TestKernelWalk(t *testing.T) {
	dir := layerDirs(t, 1)[0]
	outside := t.TempDir()
	write(t, outside+"/file", "content")
	for i, name := range []string{"usr/bin/c", "usr/b", "a", "usr/lib/x/d"} {
		write(t, filepath.Join(dir, name), strings.Repeat("x", 10-i))
	}
	must(t, os.Link(dir+"/usr/b", dir+"/usr/b2"))
	must(t, os.Symlink(outside, dir+"/out"))
	must(t, os.Symlink(outside+"/file", dir+"/usr/link"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	must(t, unix.Mknod(dir+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(dir+"/whiteout", unix.S_IFCHR, 0))
	mkdir(t, dir+"/mounted")
	kerneltest.Mount(t, "tmpfs", dir+"/mounted", "tmpfs", 0, "")
	write(t, dir+"/mounted/file", "content")
	mkdir(t, dir+"/bound")
	kerneltest.Mount(t, outside, dir+"/bound", "", unix.MS_BIND, "")
	write(t, dir+"/covered", "content")
	kerneltest.Mount(t, dir+"/mounted/file", dir+"/covered", "", unix.MS_BIND, "")
	open := tree(t, hostTree(t), dir)
	l, err := open.List(t.Context(), 1000)
	must(t, err)
	var paths []string
	for _, f := range l.Files {
		paths = append(paths, fmt.Sprint(f.Path, " ", f.Size))
	}
	got := strings.ReplaceAll(strings.Join(paths, ", "), "/usr/b2", "/usr/b")
	if want := "/usr/lib/x/d 7, /a 8, /usr/b 9, /usr/bin/c 10"; got != want || l.Truncated || l.Skipped != 8 {
		t.Errorf("%s, %d skipped, truncated %t; want %s and 8", got, l.Skipped, l.Truncated, want)
	}
	// A pipe that got the inode number of a listed file.
	var st unix.Stat_t
	must(t, unix.Stat(dir+"/fifo", &st))
	if s, err := open.Open(File{Path: "/fifo", inode: st.Ino}); !errors.Is(err, ErrStale) {
		t.Errorf("a pipe: %+v, %v", s, err)
	}
}

// TestKernelWalkBounds: neither breadth nor depth takes forever.
func TestKernelWalkBounds(t *testing.T) {
	dir := layerDirs(t, 1)[0]
	for i := range 20 {
		write(t, fmt.Sprintf("%s/%d", dir, i), "content")
	}
	l := tree(t, hostTree(t), dir)
	for limit, want := range map[int]int{0: 0, 7: 7, 20: 20, 21: 20} {
		found, err := l.List(t.Context(), limit)
		if err != nil || len(found.Files) != want || found.Truncated != (limit < 20) {
			t.Errorf("limit %d: %d files, truncated %t, %v", limit, len(found.Files), found.Truncated, err)
		}
	}
	write(t, dir+strings.Repeat("/d", maxTreeDepth+1)+"/file", "content")
	write(t, dir+strings.Repeat("/d", maxTreeDepth)+"/file", "content")
	found, err := l.List(t.Context(), 1000)
	if err != nil || len(found.Files) != 21 || !found.Truncated {
		t.Errorf("deep: %d files, truncated %t, %v", len(found.Files), found.Truncated, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.List(ctx, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// TestKernelWalkOpen: what is opened is what was listed, or nothing; a pipe in its
// place is not opened, and access times stay.
func TestKernelWalkOpen(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p string) error
		want   error
	}{
		"unchanged": {func(string) error { return nil }, nil},
		"gone":      {os.Remove, ErrStale},
		"grown":     {func(p string) error { return pwrite(p, "content and more", 0) }, ErrStale},
		"another": {func(p string) error {
			return errors.Join(os.Rename(p, p+".x"), os.WriteFile(p, []byte("content"), 0o644))
		}, ErrStale},
		"a link":      {func(p string) error { return errors.Join(os.Rename(p, p+".x"), os.Symlink(p+".x", p)) }, ErrStale},
		"a pipe":      {func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }, ErrStale},
		"a directory": {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) }, ErrStale},
		"below a link": {func(p string) error {
			return errors.Join(os.Rename(filepath.Dir(p), filepath.Dir(p)+".x"), os.Symlink("dir.x", filepath.Dir(p)))
		}, ErrStale},
		"below a mount":   {func(p string) error { return unix.Mount(filepath.Dir(p), filepath.Dir(p), "", unix.MS_BIND, "") }, ErrStale},
		"without content": {func(p string) error { return unix.Setxattr(p, "trusted.overlay.metacopy", nil, 0) }, ErrNoContent},
		"a whiteout":      {func(p string) error { return unix.Setxattr(p, "user.overlay.whiteout", []byte("y"), 0) }, ErrNoContent},
	} {
		t.Run(name, func(t *testing.T) {
			dir := layerDirs(t, 1)[0]
			p := dir + "/dir/file"
			write(t, p, "content")
			must(t, os.Chtimes(p, time.Unix(1, 0), time.Unix(2, 0)))
			l := tree(t, hostTree(t), dir)
			f := list(t, l)["/dir/file"]
			must(t, c.change(p))
			t.Cleanup(func() { _ = unix.Unmount(dir+"/dir", unix.MNT_DETACH) })
			before := descriptors(t)
			s, err := l.Open(f)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err != nil {
				if after := descriptors(t); after != before {
					t.Errorf("%d descriptors, before %d", after, before)
				}
				return
			}
			defer s.Close()
			if data, err := io.ReadAll(s); err != nil || string(data) != "content" {
				t.Errorf("%q, %v", data, err)
			}
			var st unix.Stat_t
			must(t, unix.Stat(p, &st))
			if st.Atim.Sec != 1 {
				t.Errorf("access time %v, want the old one", st.Atim)
			}
			must(t, pwrite(p, "CONTENT", 0))
			if same, err := s.Unchanged(); err != nil || same {
				t.Errorf("after a change: unchanged %t, %v", same, err)
			}
		})
	}
}

// TestKernelOpenLayerLink: a layer is found over the links that runtimes have.
func TestKernelOpenLayerLink(t *testing.T) {
	storage, list := linked(t, 2)
	h := hostTree(t)
	for name := range strings.SplitSeq(list, ":") {
		l := tree(t, h, filepath.Join(storage, name))
		dir, err := l.Layer(t.Context(), resolverFunc(func(dirs []string) ([]string, error) {
			return slices.Repeat([]string{sha("1")}, len(dirs)), nil
		}))
		if err != nil || dir.Digest != sha("1") || !strings.HasSuffix(dir.Path, "/diff") {
			t.Errorf("%+v, %v", dir, err)
		}
	}
}
