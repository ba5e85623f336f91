package guard

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelHangingVolume stops the server of a container's FUSE volume. Opens
// there hang, as they would without a guard; opens on the same container's root
// and in another container must not.
func TestKernelHangingVolume(t *testing.T) {
	source, volume := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := kerneltest.ServeFUSE(t, source, volume)
	r := newRig(t, newContains(), config())
	victim := kerneltest.NewContainer(t, map[string]string{"root": "content", "vol/x": ""}, "mount --bind "+volume+" vol")
	neighbour := kerneltest.NewContainer(t, map[string]string{"root": "content"}, "")
	for _, c := range []*kerneltest.Container{victim, neighbour} {
		r.announced(t, c)
	}
	if out, err := victim.Shell(t, "cat vol/file"); err != nil || out != "content" {
		t.Fatalf("the volume: %q, %v", out, err)
	}
	if err := server.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var stuck []*opener
	for range 2 * fanotify.DefaultReaders() {
		stuck = append(stuck, begin(t, victim.Command(t, "cat", victim.Path("vol/file"))))
	}
	for _, o := range stuck {
		o.waits(t)
	}
	for range 10 {
		for _, c := range []*kerneltest.Container{victim, neighbour} {
			if got, err := os.ReadFile(c.Path("root")); err != nil || string(got) != "content" {
				t.Fatalf("a root filesystem while the volume hangs: %q, %v", got, err)
			}
		}
	}
	if err := server.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, o := range stuck {
		o.wantContent(t, "content")
	}
}
