package layer

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelPristine: a file that nobody changed is found in the topmost layer that
// has it, in every container that shares the layer, whatever a neighbour does.
func TestKernelPristine(t *testing.T) {
	dirs := layerDirs(t, 3)
	write(t, filepath.Join(dirs[2], "usr/bin/tool"), "lowest")
	write(t, filepath.Join(dirs[2], "usr/bin/both"), "lowest")
	write(t, filepath.Join(dirs[1], "usr/bin/both"), "middle")
	write(t, filepath.Join(dirs[0], "usr/bin/top"), "topmost")
	write(t, filepath.Join(dirs[2], "etc/opaque/file"), "lowest")
	write(t, filepath.Join(dirs[0], "etc/opaque/file"), "topmost")
	must(t, unix.Setxattr(filepath.Join(dirs[0], "etc/opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	one, two := (&stack{lower: dirs}).mount(t), (&stack{lower: dirs}).mount(t)
	readOnly := (&stack{lower: dirs, readOnly: true}).mount(t)
	must(t, os.Chmod(filepath.Join(one.merged, "usr/bin/tool"), 0o700))
	one.wantNot(t, "usr/bin/tool", Overlaid)
	for _, s := range []*stack{two, readOnly} {
		s.wantPristine(t, "usr/bin/tool", 2)
		s.wantPristine(t, "usr/bin/both", 1)
		s.wantPristine(t, "usr/bin/top", 0)
		s.wantPristine(t, "etc/opaque/file", 0)
	}
	if one.rootfs.Layers()[2] != two.rootfs.Layers()[2] {
		t.Error("two containers of one image have different layers")
	}
	// A file that is opened for reading stays what it was.
	if _, err := os.ReadFile(filepath.Join(two.merged, "usr/bin/tool")); err != nil {
		t.Fatal(err)
	}
	two.wantPristine(t, "usr/bin/tool", 2)
}

// TestKernelNotPristine: after each way to change a file, or merely to open it for
// writing, it is the layer's no longer, and its identity another.
func TestKernelNotPristine(t *testing.T) {
	all := changes()
	all["only opened for writing"] = func(p, _ string) error {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		return errors.Join(err, f.Close())
	}
	for mode, options := range map[string]string{
		"plain": "", "metacopy": ",metacopy=on,redirect_dir=on", "index": ",index=on", "nfs export": ",index=on,nfs_export=on",
	} {
		t.Run(mode, func(t *testing.T) {
			s := &stack{lower: layerDirs(t, 2), options: options}
			for name := range all {
				write(t, filepath.Join(s.lower[1], "dir", name), "content")
				write(t, filepath.Join(s.lower[1], "dir", name+".other"), "content")
			}
			s.mount(t)
			for name, change := range all {
				file := "dir/" + name
				s.wantPristine(t, file, 1)
				before := identify(t, filepath.Join(s.merged, file))
				if err := change(filepath.Join(s.merged, file), filepath.Join(s.merged, file+".other")); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				s.wantNot(t, file, Overlaid, Born)
				if identify(t, filepath.Join(s.merged, file)) == before {
					t.Errorf("%s: the identity stays", name)
				}
			}
		})
	}
}

// TestKernelNotPristineByIdentity: the same without help from the upper directory:
// the times alone tell a changed file. Without btime and ctime in the comparison, it
// fails.
func TestKernelNotPristineByIdentity(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	all := changes()
	for name := range all {
		write(t, filepath.Join(s.lower[0], name), "content")
		write(t, filepath.Join(s.lower[0], name+".other"), "content")
	}
	s.mount(t)
	s.rootfs.upper = ""
	for name, change := range all {
		s.wantPristine(t, name, 0)
		must(t, change(filepath.Join(s.merged, name), filepath.Join(s.merged, name+".other")))
		s.wantNot(t, name, CopiedUp, OtherFile, Born)
	}
}

// TestKernelPosing: a file in the upper directory that looks like the layer's in
// everything that the kernel reports: it is the layer's inode, with the origin
// attribute that a copy-up leaves. Without the look into the upper directory, it
// fails.
func TestKernelPosing(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1), base: t.TempDir()}
	s.upper = filepath.Join(s.base, "c", "upper")
	below, above := filepath.Join(s.lower[0], "file"), filepath.Join(s.upper, "file")
	write(t, below, "content")
	mkdir(t, s.upper)
	must(t, os.Link(below, above))
	t.Run("as a file born there", func(t *testing.T) {
		s := &stack{lower: s.lower, upper: s.upper}
		s.mount(t).wantNot(t, "file", Born)
	})
	must(t, unix.Setxattr(above, "trusted.overlay.origin", originOf(t, below), 0))
	s.mount(t)
	var posing, own facts
	must(t, posing.observe(open(t, s.merged+"/file")))
	must(t, own.observe(open(t, below)))
	if behind, err := posing.handle.backing(); err != nil || behind.upper || !behind.is(&own.handle) || !sameState(&posing.stat, &own.stat) {
		t.Fatalf("the file does not pose as the layer's: %+v, %v", posing, err)
	}
	s.wantNot(t, "file", Overlaid)
}

// originOf returns what a copy-up of the file would leave as its origin.
func originOf(t *testing.T, path string) []byte {
	t.Helper()
	lower, upper := filepath.Dir(path), t.TempDir()
	s := (&stack{lower: []string{lower}, upper: upper}).mount(t)
	name := filepath.Base(path) + ".origin"
	write(t, filepath.Join(lower, name), "")
	must(t, os.Chmod(filepath.Join(s.merged, name), 0o700))
	origin := make([]byte, maxHandle)
	n, err := unix.Getxattr(filepath.Join(upper, name), "trusted.overlay.origin", origin)
	must(t, err)
	// The same with the handle of path: both are of one filesystem.
	var h handle
	must(t, h.of(open(t, path), 0))
	const header = ovlDataAt - ovlPadding
	return append(origin[:header:min(header, n)], h.data()...)
}

// TestKernelTopmost: what stands in the way of a layer's file keeps it from being
// found below, even if the hint says that it is there.
func TestKernelTopmost(t *testing.T) {
	dirs := layerDirs(t, 2)
	top, bottom := dirs[0], dirs[1]
	for _, name := range []string{"whiteout", "other", "link", "directory", "under/file", "beyond/file"} {
		write(t, filepath.Join(bottom, name), "content")
	}
	must(t, unix.Mknod(filepath.Join(top, "whiteout"), unix.S_IFCHR, 0))
	must(t, unix.Mknod(filepath.Join(top, "under"), unix.S_IFCHR, 0))
	must(t, os.Symlink("other", filepath.Join(top, "link")))
	mkdir(t, filepath.Join(top, "real"))
	must(t, os.Link(filepath.Join(bottom, "beyond/file"), filepath.Join(top, "real/file")))
	must(t, os.Symlink("real", filepath.Join(top, "beyond")))
	mkdir(t, filepath.Join(top, "directory"))
	write(t, filepath.Join(top, "other"), "content")
	s := (&stack{lower: dirs}).mount(t)
	below := (&stack{lower: dirs[1:]}).mount(t)
	for name, want := range map[string]Reason{
		"/whiteout": Hidden, "/link": Hidden, "/directory": Hidden, "/under/file": Hidden, "/beyond/file": Hidden,
		"/other": OtherFile, "/nothing": NotInLayers, "/other/below": Hidden,
	} {
		// A file that is hidden cannot be opened: the descriptor is of the other
		// overlay, as if it were of this one.
		opened := name
		if want == NotInLayers || name == "/other/below" {
			opened = "/other"
		}
		fd := open(t, below.merged+opened)
		m := s.rootfs.mount
		s.rootfs.mount = below.rootfs.mount
		a := attributeAs(t, s.rootfs, fd, name)
		s.rootfs.mount = m
		if a.Reason != want {
			t.Errorf("%s: %s, want %s", name, a.Reason, want)
		}
	}
	s.wantPristine(t, "other", 0)
}

func attributeAs(t *testing.T, r *Rootfs, fd int, hint string) Attribution {
	t.Helper()
	id, err := Identify(fd)
	must(t, err)
	a, err := r.Attribute(fd, id, hint)
	must(t, err)
	return a
}

// TestKernelHardLinked: where the overlay keeps hard links over a copy-up, a write
// under one name changes what another shows, and the upper directory does not have
// that one.
func TestKernelHardLinked(t *testing.T) {
	for options, want := range map[string]Reason{",index=on": HardLinked, ",index=off": Pristine} {
		s := &stack{lower: layerDirs(t, 1), options: options}
		write(t, filepath.Join(s.lower[0], "a"), "content")
		must(t, os.Link(filepath.Join(s.lower[0], "a"), filepath.Join(s.lower[0], "b")))
		s.mount(t)
		if a := s.attribute(t, "b"); a.Reason != want {
			t.Errorf("%s: %s, want %s", options, a.Reason, want)
		}
		must(t, pwrite(filepath.Join(s.merged, "a"), "CONTENT", 0))
		s.wantNot(t, "a", Overlaid, Born)
		if a := s.attribute(t, "b"); want == HardLinked && a.Reason == Pristine {
			t.Errorf("%s: pristine, although it was changed under another name", options)
		}
	}
}

// TestKernelElsewhere: files that are not on the container's root filesystem, and
// descriptors that are not what they are said to be, prove nothing.
func TestKernelElsewhere(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, filepath.Join(dirs[0], "file"), "content")
	write(t, filepath.Join(dirs[0], "dir/other"), "content")
	s, stranger := (&stack{lower: dirs}).mount(t), (&stack{lower: dirs}).mount(t)
	volume := t.TempDir()
	write(t, filepath.Join(volume, "file"), "content")
	for name, c := range map[string]struct {
		path, hint string
		want       Reason
	}{
		"another overlay with the same layer": {stranger.merged + "/file", "/file", OtherMount},
		"a volume":                            {volume + "/file", "/file", OtherMount},
		"the layer's own file":                {dirs[0] + "/file", "/file", OtherMount},
		"a directory":                         {s.merged + "/dir", "/dir", NotRegular},
		"another path":                        {s.merged + "/file", "/dir/other", OtherFile},
		"no path":                             {s.merged + "/file", "file", NoPath},
		"a path that leads out":               {s.merged + "/file", "/dir/../../../" + filepath.Base(dirs[0]) + "/file", NoPath},
		"a path that is too long":             {s.merged + "/file", "/" + string(make([]byte, maxHint)), NoPath},
		"a removed file's path":               {s.merged + "/file", "/file (deleted)", NotInLayers},
		"a path of the host":                  {s.merged + "/file", s.merged + "/file", Pristine},
	} {
		if a := attributeAs(t, s.rootfs, open(t, c.path), c.hint); a.Reason != c.want {
			t.Errorf("%s: %s, want %s", name, a.Reason, c.want)
		}
	}
	fd := open(t, s.merged+"/file")
	if a, err := s.rootfs.Attribute(fd, identify(t, s.merged+"/dir/other"), "/file"); err != nil || a.Reason != Changed {
		t.Errorf("the identity of another file: %s, %v; want changed", a.Reason, err)
	}
	if a, err := s.rootfs.Attribute(-1, Identity{}, "/file"); !errors.Is(err, unix.EBADF) || a.Reason != Failed {
		t.Errorf("no descriptor: %s, %v", a.Reason, err)
	}
}

// TestKernelMountsOfRootfs: binds and clones of the root filesystem show the same
// files, also where its layers are on several filesystems, as far as that can be
// told.
func TestKernelMountsOfRootfs(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, filepath.Join(dirs[0], "file"), "content")
	bind := t.TempDir()
	s := (&stack{lower: dirs}).mount(t)
	kerneltest.Mount(t, s.merged, bind, "", unix.MS_BIND, "")
	if a := attributeAs(t, s.rootfs, open(t, bind+"/file"), "/file"); a.Reason != Pristine {
		t.Errorf("through a bind: %s, want pristine", a.Reason)
	}
	tmpfs, bindMixed := t.TempDir(), t.TempDir()
	kerneltest.Mount(t, "tmpfs", tmpfs, "tmpfs", 0, "")
	mixed := (&stack{lower: append(dirs, tmpfs)}).mount(t)
	mixed.wantPristine(t, "file", 0)
	kerneltest.Mount(t, mixed.merged, bindMixed, "", unix.MS_BIND, "")
	if a := attributeAs(t, mixed.rootfs, open(t, bindMixed+"/file"), "/file"); a.Reason != OtherMount {
		t.Errorf("through a bind, with layers on several filesystems: %s, want other-mount", a.Reason)
	}
}

// TestKernelRemovedInContainer: what the container removed, with the directory above
// it, is not looked for in the layers any more, although it can still be open.
func TestKernelRemovedInContainer(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, dirs[0]+"/file", "content")
	write(t, dirs[0]+"/dir/file", "content")
	s := (&stack{lower: dirs}).mount(t)
	file, below := open(t, s.merged+"/file"), open(t, s.merged+"/dir/file")
	must(t, os.Remove(s.merged+"/file"))
	must(t, os.RemoveAll(s.merged+"/dir"))
	for hint, fd := range map[string]int{"/file": file, "/dir/file": below} {
		if a := attributeAs(t, s.rootfs, fd, hint); a.Reason != Overlaid {
			t.Errorf("%s: %s, want overlaid", hint, a.Reason)
		}
	}
}

// TestKernelNothingHeld: the layers' filesystem can be unmounted as soon as the
// overlay is gone, and no descriptor stays.
func TestKernelNothingHeld(t *testing.T) {
	disk := t.TempDir()
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	write(t, filepath.Join(disk, "lower/file"), "content")
	s := &stack{lower: []string{filepath.Join(disk, "lower")}, base: disk, host: hostTree(t)}
	s.mount(t)
	before := descriptors(t)
	fd, err := unix.Open(s.merged+"/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	if a := attributeFD(t, s.rootfs, fd); a.Reason != Pristine {
		t.Errorf("%s, want pristine", a.Reason)
	}
	must(t, unix.Close(fd))
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	must(t, unix.Unmount(s.merged, 0))
	must(t, unix.Unmount(disk, 0))
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(names)
}

// TestKernelExecutable: running a program changes nothing.
func TestKernelExecutable(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, filepath.Join(dirs[0], "script"), "#!/bin/sh\nexit 0\n")
	must(t, os.Chmod(filepath.Join(dirs[0], "script"), 0o755))
	s := (&stack{lower: dirs}).mount(t)
	if out, err := exec.CommandContext(t.Context(), s.merged+"/script").CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	s.wantPristine(t, "script", 0)
}

// TestQualifyWithoutBirthTime: without a birth time, a copy-up could not be told.
func TestQualifyWithoutBirthTime(t *testing.T) {
	f := facts{stat: unix.Statx_t{Mask: statxMask, Mode: unix.S_IFREG, Dev_major: 1}, handle: handleOf(t, typeOverlay, capturedLower)}
	r := &Rootfs{mount: Mount{Major: 1}}
	if _, reason := r.qualify(&f, f.identity()); reason != Pristine {
		t.Errorf("with a birth time: %s", reason)
	}
	f.stat.Mask &^= unix.STATX_BTIME
	if _, reason := r.qualify(&f, f.identity()); reason != NoBirthTime {
		t.Errorf("without: %s, want no-birth-time", reason)
	}
}

// TestAttributeReasons: every reason has a word of its own.
func TestAttributeReasons(t *testing.T) {
	seen := map[string]bool{"invalid": true}
	for _, r := range Reasons() {
		if seen[r.String()] {
			t.Errorf("reason %d: %q is taken", r, r)
		}
		seen[r.String()] = true
	}
	if reasonCount.String() != "invalid" || len(Reasons()) != int(reasonCount) {
		t.Errorf("%d reasons, then %s", len(Reasons()), reasonCount)
	}
}

// TestKernelAttributeDoesNotAllocate: nor does the answer that it is not pristine.
func TestKernelAttributeDoesNotAllocate(t *testing.T) {
	dirs := layerDirs(t, 2)
	write(t, dirs[1]+"/file", "content")
	write(t, dirs[1]+"/changed", "content")
	s := (&stack{lower: dirs}).mount(t)
	must(t, os.Chmod(s.merged+"/changed", 0o700))
	for hint, want := range map[string]Reason{"/file": Pristine, "/changed": Overlaid} {
		fd, id := open(t, s.merged+hint), identify(t, s.merged+hint)
		if n := testing.AllocsPerRun(100, func() {
			if a, err := s.rootfs.Attribute(fd, id, hint); err != nil || a.Reason != want {
				t.Errorf("%s, %v", a.Reason, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want none", want, n)
		}
	}
}
