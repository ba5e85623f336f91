package layer

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// output runs a program and returns what it printed.
func output(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// image makes an OCI image layout with three layers, each with the file FILEn, and
// returns the diff ids in its configuration, lowest first.
func image(t *testing.T, dir string) (diffs []string) {
	t.Helper()
	output(t, dir, "umoci", "init", "--layout", "oci")
	output(t, dir, "umoci", "new", "--image", "oci:test")
	for i := range 3 {
		layer := filepath.Join(dir, fmt.Sprint("layer", i))
		write(t, fmt.Sprintf("%s/usr/file%d", layer, i), fmt.Sprint("content ", i))
		output(t, dir, "umoci", "insert", "--image", "oci:test", layer, "/")
	}
	var index struct{ Manifests []struct{ Digest string } }
	var manifest struct{ Config struct{ Digest string } }
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	readJSON(t, filepath.Join(dir, "oci/index.json"), &index)
	readJSON(t, blob(dir, index.Manifests[0].Digest), &manifest)
	readJSON(t, blob(dir, manifest.Config.Digest), &config)
	if len(config.RootFS.DiffIDs) != 3 {
		t.Fatalf("the image has %d layers", len(config.RootFS.DiffIDs))
	}
	return config.RootFS.DiffIDs
}

func blob(dir, digest string) string {
	return filepath.Join(dir, "oci/blobs", strings.Replace(digest, ":", "/", 1))
}

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	must(t, json.Unmarshal(data, into))
}

// TestKernelPodman: the layers of a real podman's containers have the digests of
// the image; two containers share them; what a container writes is its own; and the
// image removed and pulled again has the digests and is another one.
func TestKernelPodman(t *testing.T) {
	dir := t.TempDir()
	diffs := image(t, dir)
	storage := filepath.Join(dir, "storage")
	podman := func(args ...string) string {
		t.Helper()
		return output(t, dir, "podman", append([]string{
			"--root", storage, "--runroot", dir + "/run", "--tmpdir", dir + "/tmp",
			"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		}, args...)...)
	}
	t.Cleanup(func() { _ = unix.Unmount(storage+"/overlay", unix.MNT_DETACH) })
	resolver := NewContainersStorage(hostTree(t))
	container := func() (*stack, string) {
		t.Helper()
		id := podman("create", "--network", "none", podman("pull", "-q", "oci:oci:test"), "/none")
		s := &stack{merged: podman("mount", id)}
		s.find(t, resolver)
		if err := s.rootfs.Unresolved(); err != nil {
			t.Fatal(err)
		}
		return s, id
	}
	one, first := container()
	two, second := container()
	for i, layer := range one.rootfs.Layers() {
		if want := diffs[len(diffs)-1-i]; layer.Digest != want {
			t.Errorf("layer %d is %s, want %s", i, layer.Digest, want)
		}
		if layer != two.rootfs.Layers()[i] {
			t.Errorf("layer %d is not the same in two containers", i)
		}
	}
	for i := range diffs {
		file := fmt.Sprint("usr/file", i)
		one.wantPristine(t, file, len(diffs)-1-i)
		if identify(t, one.merged+"/"+file) != identify(t, two.merged+"/"+file) {
			t.Errorf("%s has two identities in two containers", file)
		}
	}
	wantAhead(t, resolver, storage, podman("inspect", "--format", "{{.Image}}", first), one)
	must(t, pwrite(one.merged+"/usr/file0", "CONTENT", 0))
	one.wantNot(t, "usr/file0", Overlaid)
	two.wantPristine(t, "usr/file0", 2)

	for _, id := range []string{first, second} {
		podman("umount", id)
		podman("rm", id)
	}
	podman("rmi", "--all")
	again, third := container()
	defer podman("umount", third)
	for i, layer := range again.rootfs.Layers() {
		if was := one.rootfs.Layers()[i]; layer.Digest != was.Digest || layer.Dir == was.Dir {
			t.Errorf("layer %d pulled again: %+v, before %+v", i, layer, was)
		}
	}
}

// wantAhead fails t unless the image's layers, and the identities of their files, are
// known without the container.
func wantAhead(t *testing.T, resolver *ContainersStorage, storage, image string, s *stack) {
	t.Helper()
	dirs, err := resolver.Image(storage, image)
	if err != nil || !slices.Equal(dirs, s.rootfs.Dirs()) {
		t.Fatalf("%+v, %v, want %+v", dirs, err, s.rootfs.Dirs())
	}
	for i, dir := range dirs {
		if again, err := resolver.LayersByDigest(storage, dir.Digest); err != nil || !slices.Contains(again, dir) {
			t.Errorf("%s: %+v, %v", dir.Digest, again, err)
		}
		l := tree(t, s.host, dir.Path)
		name := fmt.Sprint("/usr/file", len(dirs)-1-i)
		if id := predicted(t, l, list(t, l)[name]); id != identify(t, s.merged+name) {
			t.Errorf("%s: predicted %s, another is reported", name, id)
		}
	}
}
