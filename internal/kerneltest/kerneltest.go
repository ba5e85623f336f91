// Package kerneltest gives tests of the event path what they stand on: scratch
// overlays, and processes that look to the agent like a container's. It is for
// tests only and needs root. With [Main] nothing of it outlives a test that dies.
package kerneltest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An Overlay is a scratch overlay mount with one lower layer.
type Overlay struct {
	Lower, Upper, Merged string
}

// NewOverlay mounts an overlay whose lower layer holds files, by name.
func NewOverlay(tb testing.TB, files map[string]string) Overlay {
	tb.Helper()
	base := tb.TempDir()
	o := Overlay{Lower: filepath.Join(base, "lower"), Upper: filepath.Join(base, "upper"), Merged: filepath.Join(base, "merged")}
	work := filepath.Join(base, "work")
	for _, dir := range []string{o.Lower, o.Upper, o.Merged, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	for name, content := range files {
		file := filepath.Join(o.Lower, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	Mount(tb, "overlay", o.Merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.Lower, o.Upper, work))
	return o
}

// Mount mounts and unmounts at the end of the test.
func Mount(tb testing.TB, source, target, fstype string, flags uintptr, data string) {
	tb.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		tb.Fatalf("mount %s at %s: %v", fstype, target, err)
	}
	tb.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// Path returns the path of a file on the mount.
func (o Overlay) Path(name string) string { return filepath.Join(o.Merged, name) }
