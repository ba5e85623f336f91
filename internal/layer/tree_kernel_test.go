package layer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelPredict: what is predicted from a layer's file is what an overlay on the
// layer reports, however many layers there are; and not once the file was changed.
func TestKernelPredict(t *testing.T) {
	h := hostTree(t)
	for _, layers := range []int{1, 2, 63} {
		stack := kerneltest.NewStack(t, layers)
		o := stack.Mount(t)
		for i, dir := range stack {
			tree, err := h.OpenLayer(dir)
			if err != nil {
				t.Fatal(err)
			}
			files, err := tree.List(t.Context())
			if err != nil || len(files) != 1 || files[0].Path != fmt.Sprint("file", i) {
				t.Fatalf("layer %d: %v, %v", i, files, err)
			}
			f, predicted, err := tree.OpenFile(&files[0])
			if err != nil {
				t.Fatal(err)
			}
			if got := identifyPath(t, o.Path(files[0].Path)); got != predicted {
				t.Errorf("file of layer %d of %d: the overlay says %v, predicted was %v", i, layers, got, predicted)
			}
			if err := os.Chmod(o.Path(files[0].Path), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := identifyPath(t, o.Path(files[0].Path)); got == predicted {
				t.Errorf("file of layer %d of %d: copied up, and still as predicted", i, layers)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func identifyPath(t *testing.T, path string) Identity {
	t.Helper()
	fd := open(t, path)
	defer unix.Close(fd)
	id, err := Identify(fd)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestKernelTree: only regular files of the layer itself are listed and opened.
func TestKernelTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for path, content := range map[string]string{
		outside: "outside", filepath.Join(dir, "a/b/file"): "inside", filepath.Join(dir, "big"): "0123456789", filepath.Join(dir, "m/under"): "hidden",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(dir, "link")),
		os.Symlink(filepath.Dir(outside), filepath.Join(dir, "dirlink")),
		os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "bigger")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kerneltest.Mount(t, "tmpfs", filepath.Join(dir, "m"), "tmpfs", 0, "")
	if err := os.WriteFile(filepath.Join(dir, "m/mounted"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := hostTree(t).OpenLayer(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	files, err := tree.List(t.Context())
	if err != nil || len(files) != 2 || files[0].Path != "a/b/file" || files[1].Path != "big" {
		t.Fatalf("%+v, %v", files, err)
	}
	// What was listed and is another file now is not opened.
	for name, change := range map[string]func() error{
		"grown":    func() error { return os.WriteFile(filepath.Join(dir, "a/b/file"), []byte("more than before"), 0o600) },
		"replaced": func() error { return os.Rename(outside, filepath.Join(dir, "a/b/file")) },
		"linked": func() error {
			_ = os.Remove(filepath.Join(dir, "a/b/file"))
			return os.Symlink("../../big", filepath.Join(dir, "a/b/file"))
		},
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if f, _, err := tree.OpenFile(&files[0]); err == nil {
			_ = f.Close()
			t.Errorf("%s: it was opened", name)
		}
	}
}
