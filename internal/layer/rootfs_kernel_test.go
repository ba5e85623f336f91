package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// linked returns a storage as podman and docker have it, with n layers: ID/diff and
// short links l/NAME to them. The list names the links relative to the storage.
func linked(t *testing.T, n int) (storage, list string) {
	t.Helper()
	storage = t.TempDir()
	mkdir(t, filepath.Join(storage, "l"))
	names := make([]string, n)
	for i := range n {
		id := fmt.Sprintf("%064x", i+1)
		write(t, filepath.Join(storage, id, "diff", fmt.Sprintf("dir%d/file", i)), "content")
		write(t, filepath.Join(storage, id, "diff", "both"), "content")
		names[i] = "l/" + strings.ToUpper(id[64-12:])
		must(t, os.Symlink("../"+id+"/diff", filepath.Join(storage, names[i])))
	}
	return storage, strings.Join(names, ":")
}

// TestKernelManyLayers: relative short links, as many as fit a page and as images
// have.
func TestKernelManyLayers(t *testing.T) {
	for _, n := range []int{1, 63, 127} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			storage, list := linked(t, n)
			s := &stack{relativeTo: storage, lowerdir: list, base: storage}
			s.mount(t)
			layers := s.rootfs.Layers()
			if len(layers) != n {
				t.Fatalf("%d layers, want %d", len(layers), n)
			}
			seen := map[Layer]bool{}
			for i, l := range layers {
				seen[l] = true
				s.wantPristine(t, fmt.Sprintf("dir%d/file", i), i)
			}
			if len(seen) != n {
				t.Errorf("%d different layers, want %d", len(seen), n)
			}
			s.wantPristine(t, "both", 0)
		})
	}
}

// TestKernelAddedLayers: layers given one by one, with long names that would not
// fit a page, and one that only holds data.
func TestKernelAddedLayers(t *testing.T) {
	const n = 127
	base := filepath.Join(t.TempDir(), strings.Repeat("long name ", 20))
	s := &stack{merged: filepath.Join(base, "merged")}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	for i := range n {
		dir := filepath.Join(base, fmt.Sprint(i))
		write(t, filepath.Join(dir, fmt.Sprintf("dir%d/file", i)), "content")
		must(t, unix.FsconfigSetString(fs, "lowerdir+", dir))
	}
	for _, name := range []string{"merged", "upperdir", "workdir", "datadir+"} {
		mkdir(t, filepath.Join(base, name))
		if name != "merged" {
			must(t, unix.FsconfigSetString(fs, name, filepath.Join(base, name)))
		}
	}
	must(t, unix.FsconfigSetString(fs, "metacopy", "on"))
	must(t, unix.FsconfigCreate(fs))
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(mount)
	must(t, unix.MoveMount(mount, "", unix.AT_FDCWD, s.merged, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { _ = unix.Unmount(s.merged, unix.MNT_DETACH) })
	s.host = hostTree(t)
	// The line is too long for the parser that mountAt uses.
	options := "metacopy=on,upperdir=" + escape(base) + "/upperdir"
	for i := range n {
		options += ",lowerdir+=" + escape(base) + fmt.Sprintf("/%d", i)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	line := lineOf(t, string(table), escape(s.merged))
	if got := strings.Count(line, ",lowerdir+="+escape(base)); got != n {
		t.Fatalf("mountinfo shows %d layers: %s", got, line)
	}
	m := Mount{Options: options}
	_, err = fmt.Sscanf(line, "%d %d %d:%d", &m.ID, new(int), &m.Major, &m.Minor)
	must(t, err)
	s.rootfs, err = s.host.Rootfs(t.Context(), m, nil)
	must(t, err)
	for i := range n {
		s.rootfs.mount.Mountpoint = s.merged
		s.wantPristine(t, fmt.Sprintf("dir%d/file", i), i)
	}
}

// escape does what the kernel does with spaces.
func escape(s string) string { return strings.ReplaceAll(s, " ", `\040`) }

func lineOf(t *testing.T, table, mountpoint string) string {
	t.Helper()
	for line := range strings.Lines(table) {
		if strings.Contains(line, " "+mountpoint+" ") {
			return line
		}
	}
	t.Fatalf("%s is not mounted", mountpoint)
	return ""
}

// TestKernelEscapedNames: every character that overlayfs or mountinfo escapes, in
// lower and upper directories.
func TestKernelEscapedNames(t *testing.T) {
	base := t.TempDir()
	names := []string{"co:lon", "com,ma", `back\slash`, "spa ce", "equ=als", "ta\tb", "new\nline", "ha#sh", `en\`}
	escaped := make([]string, len(names))
	for i, name := range names {
		write(t, filepath.Join(base, name, fmt.Sprint(i)), "content")
		escaped[i] = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(base + "/" + name)
	}
	mkdir(t, filepath.Join(base, `up,:\`))
	s := &stack{lowerdir: strings.Join(escaped, ":"), base: base, upper: filepath.Join(base, `up\,\:\\`)}
	s.mount(t)
	for i := range names {
		s.wantPristine(t, fmt.Sprint(i), i)
	}
	must(t, os.Chmod(filepath.Join(s.merged, "0"), 0o700))
	s.wantNot(t, "0", Overlaid)
}

// TestKernelBases: what relative directories are relative to.
func TestKernelBases(t *testing.T) {
	storage, list := linked(t, 2)
	elsewhere := t.TempDir()
	s := &stack{relativeTo: storage, lowerdir: list, base: elsewhere, host: hostTree(t)}
	s.mountWithoutLayers(t)
	m := mountAt(t, s.merged)
	if _, err := s.host.Rootfs(t.Context(), m, nil); !errors.Is(err, ErrLayers) {
		t.Errorf("without a base: %v, want ErrLayers", err)
	}
	wrong, _ := linked(t, 2)
	for base, want := range map[string]Reason{storage: Pristine, wrong: OtherFile} {
		var err error
		if s.rootfs, err = s.host.Rootfs(t.Context(), m, []string{elsewhere, base}); err != nil {
			t.Fatal(err)
		}
		if a := s.attribute(t, "both"); a.Reason != want {
			t.Errorf("%s: %s, want %s", base, a.Reason, want)
		}
	}
	m.Mountpoint, m.Options = storage+"/ID/merged", "lowerdir="+list
	if _, err := s.host.Rootfs(t.Context(), m, nil); err != nil {
		t.Errorf("the mount point is in the storage: %v", err)
	}
}

// mountWithoutLayers mounts the stack and does not find its layers.
func (s *stack) mountWithoutLayers(t *testing.T) {
	t.Helper()
	s.merged, s.upper, s.work = filepath.Join(s.base, "merged"), filepath.Join(s.base, "upper"), filepath.Join(s.base, "work")
	for _, dir := range []string{s.merged, s.upper, s.work} {
		mkdir(t, dir)
	}
	inDir(t, s.relativeTo, func() {
		must(t, unix.Mount("overlay", s.merged, "overlay", 0, "lowerdir="+s.lowerdir+",upperdir="+s.upper+",workdir="+s.work))
	})
	t.Cleanup(func() { _ = unix.Unmount(s.merged, unix.MNT_DETACH) })
}

// TestRootfsErrors: what cannot be found is an error that says what.
func TestRootfsErrors(t *testing.T) {
	h, dir := hostTree(t), t.TempDir()
	for name, c := range map[string]struct{ options, want string }{
		"no overlay":    {"rw,size=1k", "no lowerdir"},
		"gone":          {"lowerdir=" + dir + "/gone", "gone: no such file"},
		"upper gone":    {"lowerdir=" + dir + ",upperdir=" + dir + "/up", "upper directory"},
		"relative":      {"lowerdir=a", "relative"},
		"file":          {"lowerdir=/proc/self/status", "not a directory"},
		"no birth time": {"lowerdir=/proc", "birth times"},
	} {
		if _, err := h.Rootfs(t.Context(), Mount{Options: c.options}, nil); !errors.Is(err, ErrLayers) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrLayers with %q", name, err, c.want)
		}
	}
	if _, err := OpenHost(dir + "/gone"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no host: %v", err)
	}
}

// TestResolvers: the first resolver that knows a layer names it; one that fails, or
// answers nonsense, costs digests and nothing else.
func TestResolvers(t *testing.T) {
	dirs := layerDirs(t, 3)
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	broken := errors.New("broken")
	answers := func(digests ...string) Resolver {
		return resolverFunc(func([]string) ([]string, error) { return digests, nil })
	}
	r, err := hostTree(t).Rootfs(t.Context(), Mount{Options: "lowerdir=" + strings.Join(dirs, ":")}, nil,
		resolverFunc(func([]string) ([]string, error) { return nil, broken }),
		answers("nonsense", digest("a"), ""), answers(digest("b"), digest("b"), ""), answers("too few"))
	must(t, err)
	for i, want := range []string{digest("b"), digest("a"), ""} {
		if got := r.Layers()[i].Digest; got != want {
			t.Errorf("layer %d: digest %q, want %q", i, got, want)
		}
	}
	if !errors.Is(r.Unresolved(), broken) || !strings.Contains(r.Unresolved().Error(), "1 digests for 3") {
		t.Errorf("unresolved: %v", r.Unresolved())
	}
}

// TestHostElsewhere: the host's tree can be mounted somewhere below the agent's
// root; links in it lead to where they do on the host.
func TestHostElsewhere(t *testing.T) {
	tree := t.TempDir()
	write(t, filepath.Join(tree, "data/storage/1/diff/file"), "content")
	mkdir(t, filepath.Join(tree, "var/lib"))
	must(t, os.Symlink("/data/storage", filepath.Join(tree, "var/lib/storage")))
	h, err := OpenHost(tree)
	must(t, err)
	defer h.Close()
	d, err := h.directory("/var/lib/storage/1/diff")
	if err != nil || d.name != "/data/storage/1/diff" {
		t.Fatalf("%q, %v", d.name, err)
	}
	if outside, err := h.directory("/../../.." + tree); err == nil {
		t.Errorf("a path leads out of the tree: %q", outside.name)
	}
}
