package cri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/assay-project/assay/e2e/harness"
)

// The names of a node's images.
const (
	TestImage  = "localhost/assay/image:test" // the test image of package harness
	pauseImage = "localhost/assay/pause:test" // of the pods' own containers
)

// Images are the digests of a node's test image.
type Images struct {
	Manifest string   // digest of its manifest
	DiffIDs  []string // of its layers, uncompressed; bottom first
}

// importImages gives containerd the test image and an image for the pods' own containers.
func (n *Node) importImages(tb testing.TB) {
	tb.Helper()
	layout := n.suite.Image(tb).Layout
	n.Import(tb, "localhost/assay/image", layout)
	n.Images = digests(tb, layout)
	pause := n.suite.Layout(tb, "pause")
	command(tb, "umoci", "config", "--image", pause+":test", "--clear", "config.cmd", "--config.entrypoint", "/bin/sleep",
		"--config.entrypoint", "2147483647")
	n.Import(tb, "localhost/assay/pause", pause)
}

// Import gives containerd the image of an OCI image layout, which is NAME:test then.
func (n *Node) Import(tb testing.TB, name, layout string) {
	tb.Helper()
	archive := filepath.Join(n.suite.Scratch(tb), "image.tar")
	command(tb, "tar", "-C", layout, "-cf", archive, ".")
	n.ctr(tb, "images", "import", "--local", "--snapshotter", n.snapshotter(), "--base-name", name, archive)
	harness.Eventually(tb, "CRI knows the image", func() error {
		ctx, cancel := call(tb)
		defer cancel()
		r, err := n.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name + ":test"}})
		if err == nil && r.GetImage() == nil {
			err = os.ErrNotExist
		}
		return err
	})
}

// RemoveImage removes an image as the kubelet does.
func (n *Node) RemoveImage(tb testing.TB, name string) {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	if _, err := n.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}}); err != nil {
		tb.Errorf("remove image %s: %v", name, err)
	}
}

// Snapshots returns the keys of all snapshots, active and committed.
func (n *Node) Snapshots(tb testing.TB) []string {
	tb.Helper()
	var keys []string
	for line := range strings.Lines(n.ctr(tb, "snapshots", "--snapshotter", n.snapshotter(), "ls")) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "KEY" {
			keys = append(keys, f[0])
		}
	}
	return keys
}

// ctr runs containerd's own client in the namespace of CRI.
func (n *Node) ctr(tb testing.TB, args ...string) string {
	tb.Helper()
	return command(tb, filepath.Join(n.bin, "ctr"), append([]string{"--address", n.Socket, "--namespace", "k8s.io"}, args...)...)
}

// command runs a command that has to succeed and returns its output.
func command(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	r := harness.Command(tb, name, args...)
	if r.Code != 0 {
		tb.Fatalf("%s %q: %s", name, args, r)
	}
	return r.Stdout
}

// digests reads the digests of the only image of a layout.
func digests(tb testing.TB, layout string) Images {
	tb.Helper()
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	var manifest struct {
		Config descriptor `json:"config"`
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/"))
	}
	readJSON(tb, filepath.Join(layout, "index.json"), &index)
	if len(index.Manifests) != 1 {
		tb.Fatalf("%d images in %s, want one", len(index.Manifests), layout)
	}
	readJSON(tb, blob(index.Manifests[0].Digest), &manifest)
	readJSON(tb, blob(manifest.Config.Digest), &config)
	return Images{Manifest: index.Manifests[0].Digest, DiffIDs: config.RootFS.DiffIDs}
}

func readJSON(tb testing.TB, path string, into any) {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		tb.Fatal(err)
	}
}
