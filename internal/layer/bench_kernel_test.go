package layer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

func BenchmarkKernelOwns(b *testing.B) {
	s, fd, _ := openStack(b, 2)
	b.ReportAllocs()
	for b.Loop() {
		if _, owns, err := s.rootfs.Owns(fd); err != nil || !owns {
			b.Fatal(owns, err)
		}
	}
}

func BenchmarkKernelOpenUpper(b *testing.B) {
	s, _, _ := openStack(b, 2)
	write(b, s.merged+"/born", "content")
	must(b, os.Chmod(s.merged+"/usr/bin/tool", 0o700))
	for name, hint := range map[string]string{"born": "/born", "copied": "/usr/bin/tool"} {
		fd, id := open(b, s.merged+hint), identify(b, s.merged+hint)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				upper, reason, err := s.rootfs.OpenUpper(fd, id, hint)
				if err != nil || reason != InUpper {
					b.Fatal(reason, err)
				}
				_ = unix.Close(upper)
			}
		})
	}
}

// BenchmarkKernelList lists a layer of 10,000 files, and opens one of them.
func BenchmarkKernelList(b *testing.B) {
	dir := layerDirs(b, 1)[0]
	for i := range 10_000 {
		write(b, fmt.Sprintf("%s/usr/lib/%d/%d", dir, i%100, i), "content")
	}
	t := tree(b, hostTree(b), dir)
	var files []File
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			l, err := t.List(b.Context(), 1<<20)
			if err != nil || len(l.Files) != 10_000 {
				b.Fatal(len(l.Files), err)
			}
			files = l.Files
		}
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := t.Open(files[0])
			if err != nil {
				b.Fatal(err)
			}
			_ = s.Close()
		}
	})
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
