package layer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelRedirected: a directory that a layer or the container renamed shows
// files of another path. They are never taken for what the layers have there.
func TestKernelRedirected(t *testing.T) {
	dirs := layerDirs(t, 2)
	write(t, filepath.Join(dirs[1], "from/file"), "content")
	write(t, filepath.Join(dirs[1], "to/file"), "content")
	mkdir(t, filepath.Join(dirs[0], "to"))
	must(t, unix.Setxattr(filepath.Join(dirs[0], "to"), "trusted.overlay.redirect", []byte("/from"), 0))
	s := (&stack{lower: dirs, options: ",redirect_dir=on"}).mount(t)
	s.wantNot(t, "to/file", OtherFile)
	s.wantPristine(t, "from/file", 1)
	must(t, os.Rename(s.merged+"/from", s.merged+"/moved"))
	s.wantNot(t, "moved/file", NotInLayers)
}

// TestKernelMetacopy: a layer's file that has its content in another layer is not
// that layer's; nor is one whose content is in a directory that only holds data.
func TestKernelMetacopy(t *testing.T) {
	dirs := layerDirs(t, 2)
	write(t, filepath.Join(dirs[1], "file"), "content")
	withoutContent(t, filepath.Join(dirs[0], "file"), "trusted")
	s := (&stack{lower: dirs, options: ",metacopy=on,redirect_dir=on"}).mount(t)
	wantContent(t, s, "file")
	s.wantNot(t, "file", MetadataOnly)

	// Without the option, the overlay does not show another layer's content: the
	// attribute need not be looked for.
	off := (&stack{lower: dirs, options: ",metacopy=off"}).mount(t)
	if content, err := os.ReadFile(off.merged + "/file"); err == nil && string(content) == "content" {
		t.Error("metacopy=off: the content is another layer's")
	}

	user := layerDirs(t, 1)[0]
	withoutContent(t, filepath.Join(user, "file"), "user")
	for options, top := range map[string]string{
		",metacopy=on,redirect_dir=on": dirs[0], ",metacopy=off": dirs[0], ",userxattr": user,
	} {
		data := (&stack{lowerdir: top + "::" + dirs[1], options: options}).mount(t)
		// Whether it shows the content depends on the kernel; if it does, then not as
		// the layer's.
		if content, err := os.ReadFile(data.merged + "/file"); err == nil && string(content) == "content" {
			data.wantNot(t, "file", MetadataOnly)
		} else if strings.Contains(options, "metacopy=on") {
			t.Errorf("%s: %q, %v", options, content, err)
		}
		if n := len(data.rootfs.Layers()); n != 1 {
			t.Errorf("%d layers, want one: the other only holds data", n)
		}
	}
}

// withoutContent makes a file whose content is that of /file in a layer below.
func withoutContent(t *testing.T, name, space string) {
	t.Helper()
	write(t, name, "")
	must(t, os.Truncate(name, int64(len("content"))))
	must(t, unix.Setxattr(name, space+".overlay.metacopy", nil, 0))
	must(t, unix.Setxattr(name, space+".overlay.redirect", []byte("/file"), 0))
}

func wantContent(t *testing.T, s *stack, name string) {
	t.Helper()
	if data, err := os.ReadFile(filepath.Join(s.merged, name)); err != nil || string(data) != "content" {
		t.Fatalf("%s: %q, %v", name, data, err)
	}
}
