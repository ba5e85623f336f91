package layer

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// openStack mounts n layers, the lowest of which has /usr/bin/tool, and opens that.
func openStack(b *testing.B, n int) (*stack, int, Identity) {
	b.Helper()
	dirs := layerDirs(b, n)
	write(b, filepath.Join(dirs[n-1], "usr/bin/tool"), "content")
	s := &stack{base: filepath.Dir(filepath.Dir(dirs[0]))}
	s.relativeTo = s.base
	for i := range dirs {
		dirs[i] = strings.TrimPrefix(dirs[i], s.base+"/")
	}
	s.lowerdir = strings.Join(dirs, ":")
	s.mount(b)
	return s, open(b, s.merged+"/usr/bin/tool"), identify(b, s.merged+"/usr/bin/tool")
}

func BenchmarkKernelIdentify(b *testing.B) {
	_, fd, _ := openStack(b, 2)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Identify(fd); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKernelAttribute(b *testing.B) {
	for _, n := range []int{1, 3, 63, 127} {
		b.Run(fmt.Sprint("layers=", n), func(b *testing.B) {
			s, fd, id := openStack(b, n)
			b.ReportAllocs()
			for b.Loop() {
				if a, err := s.rootfs.Attribute(fd, id, "/usr/bin/tool"); err != nil || a.Reason != Pristine {
					b.Fatal(a, err)
				}
			}
		})
	}
}

func BenchmarkKernelRootfs(b *testing.B) {
	s, _, _ := openStack(b, 63)
	m := mountAt(b, s.merged)
	for b.Loop() {
		if _, err := s.host.Rootfs(b.Context(), m, nil); err != nil {
			b.Fatal(err)
		}
	}
}
