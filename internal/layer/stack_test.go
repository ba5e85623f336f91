package layer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// A stack is an overlay with the layers that it was found to have.
type stack struct {
	lower                []string // topmost first
	upper, work, merged  string
	rootfs               *Rootfs
	host                 *Host
	base                 string
	readOnly             bool
	options              string // further ones
	relativeTo, lowerdir string // instead of lower's absolute paths
}

// layerDirs makes n empty directories, topmost first.
func layerDirs(tb testing.TB, n int) []string {
	tb.Helper()
	base := tb.TempDir()
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = filepath.Join(base, fmt.Sprintf("l%03d", i), "diff")
		mkdir(tb, dirs[i])
	}
	return dirs
}

// mount mounts the stack in directories of its own and finds its layers.
func (s *stack) mount(tb testing.TB, resolvers ...Resolver) *stack {
	tb.Helper()
	if s.base == "" {
		s.base = tb.TempDir()
	}
	s.merged = filepath.Join(s.base, "c", "merged")
	mkdir(tb, s.merged)
	if s.lowerdir == "" {
		s.lowerdir = strings.Join(s.lower, ":")
	}
	data := "lowerdir=" + s.lowerdir
	if !s.readOnly {
		if s.upper == "" {
			s.upper = filepath.Join(s.base, "c", "upper")
		}
		s.work = filepath.Join(s.base, "c", "work")
		mkdir(tb, s.upper)
		mkdir(tb, s.work)
		data += ",upperdir=" + s.upper + ",workdir=" + s.work
	}
	inDir(tb, s.relativeTo, func() { kerneltest.Mount(tb, "overlay", s.merged, "overlay", 0, data+s.options) })
	s.find(tb, resolvers...)
	return s
}

// inDir runs f with another working directory, unless it is "".
func inDir(tb testing.TB, dir string, f func()) {
	tb.Helper()
	if dir == "" {
		f()
		return
	}
	was, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	must(tb, os.Chdir(dir))                    //nolint:usetesting // only for the mount
	defer func() { must(tb, os.Chdir(was)) }() //nolint:usetesting // see above
	f()
}

// find finds the stack's layers.
func (s *stack) find(tb testing.TB, resolvers ...Resolver) {
	tb.Helper()
	if s.host == nil {
		s.host = hostTree(tb)
	}
	r, err := s.host.Rootfs(tb.Context(), mountAt(tb, s.merged), nil, resolvers...)
	if err != nil {
		tb.Fatal(err)
	}
	s.rootfs = r
}

func hostTree(tb testing.TB) *Host {
	tb.Helper()
	h, err := OpenHost("/")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { must(tb, h.Close()) })
	return h
}

// mountAt describes the topmost mount at a path as mountinfo does.
func mountAt(tb testing.TB, path string) Mount {
	tb.Helper()
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil || len(all) == 0 {
		tb.Fatalf("%s is not mounted: %v", path, err)
	}
	m := all[len(all)-1]
	return Mount{ID: m.ID, Major: m.Major, Minor: m.Minor, Options: m.VFSOptions, Mountpoint: m.Mountpoint}
}

// open opens a file for reading.
func open(tb testing.TB, path string) int {
	tb.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func identify(tb testing.TB, path string) Identity {
	tb.Helper()
	id, err := Identify(open(tb, path))
	if err != nil || id.IsZero() {
		tb.Fatalf("%s: %v, %v", path, id, err)
	}
	return id
}

// attribute attributes a file of the stack as the gate does.
func (s *stack) attribute(tb testing.TB, name string) Attribution {
	tb.Helper()
	fd := open(tb, filepath.Join(s.merged, name))
	return attributeFD(tb, s.rootfs, fd)
}

func attributeFD(tb testing.TB, r *Rootfs, fd int) Attribution {
	tb.Helper()
	id, err := Identify(fd)
	must(tb, err)
	hint, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	must(tb, err)
	a, err := r.Attribute(fd, id, hint)
	must(tb, err)
	return a
}

// wantPristine fails t unless the file is the layer's at this depth.
func (s *stack) wantPristine(tb testing.TB, name string, depth int) {
	tb.Helper()
	a := s.attribute(tb, name)
	if a.Reason != Pristine || a.Depth != depth || a.Layer != s.rootfs.Layers()[depth] {
		tb.Errorf("%s: %+v (%s), want pristine in layer %d", name, a, a.Reason, depth)
	}
}

// wantNot fails t unless the file is not pristine, for one of the reasons.
func (s *stack) wantNot(tb testing.TB, name string, reasons ...Reason) {
	tb.Helper()
	a := s.attribute(tb, name)
	if !slices.Contains(reasons, a.Reason) || a.Layer != (Layer{}) {
		tb.Errorf("%s: %s of layer %+v, want %v", name, a.Reason, a.Layer, reasons)
	}
}

func mkdir(tb testing.TB, path string) {
	tb.Helper()
	must(tb, os.MkdirAll(path, 0o755))
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	mkdir(tb, filepath.Dir(path))
	must(tb, os.WriteFile(path, []byte(content), 0o644))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A resolverFunc is a resolver of one function.
type resolverFunc func(directories []string) ([]string, error)

func (f resolverFunc) Digests(_ context.Context, directories []string) ([]string, error) {
	return f(directories)
}
