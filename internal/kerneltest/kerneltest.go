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

// NewOverlayOn mounts another overlay on an existing lower layer.
func NewOverlayOn(tb testing.TB, lower string) Overlay {
	tb.Helper()
	return Stack{lower}.Mount(tb)
}

// A Stack is the directories of several layers, topmost first.
type Stack []string

// NewStack makes n layers; that at depth i has one file, "file<i>", with content of
// its own.
func NewStack(tb testing.TB, n int) Stack {
	tb.Helper()
	base := tb.TempDir()
	var s Stack
	for i := range n {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), fmt.Appendf(nil, "layer %d", i), 0o644); err != nil {
			tb.Fatal(err)
		}
		s = append(s, dir)
	}
	return s
}

// Mount mounts an overlay on the layers, with an upper directory of its own on their
// filesystem. Many layers do not fit into the options of mount(2).
func (s Stack) Mount(tb testing.TB) Overlay {
	tb.Helper()
	base := tb.TempDir() // beside the layers', on the same filesystem
	o := Overlay{Lower: s[0], Upper: filepath.Join(base, "upper"), Merged: filepath.Join(base, "merged")}
	work := filepath.Join(base, "work")
	for _, dir := range []string{o.Upper, o.Merged, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	options := [][2]string{{"upperdir", o.Upper}, {"workdir", work}}
	for _, dir := range s {
		options = append(options, [2]string{"lowerdir+", dir})
	}
	if err := mountOverlay(o.Merged, options); err != nil {
		tb.Fatalf("mount an overlay on %d layers: %v", len(s), err)
	}
	tb.Cleanup(func() { _ = unix.Unmount(o.Merged, unix.MNT_DETACH) })
	return o
}

// mountOverlay mounts with fsconfig(2), one option after another.
func mountOverlay(target string, options [][2]string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, option := range options {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return fmt.Errorf("%s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
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
