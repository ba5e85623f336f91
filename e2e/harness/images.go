package harness

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// A PodmanImage is an image in the storage of the suite's podman.
type PodmanImage struct {
	ID   string
	Name string // localhost/NAME:latest's NAME with its tag, as podman calls it

	podman *podman
}

// PodmanImage returns the test image as podman has it.
func (s *Suite) PodmanImage(tb testing.TB) *PodmanImage {
	tb.Helper()
	p, err := s.podman()
	if err != nil {
		tb.Fatal(err)
	}
	return p.inspected(tb, p.image)
}

// Layout makes an image whose layers are the test image's lowest one and, above it,
// one for each of the given sets of files. It returns the OCI image layout, in which the
// image is called "test"; the layout is gone with tb.
func (s *Suite) Layout(tb testing.TB, name string, above ...map[string]string) string {
	tb.Helper()
	dir := s.Scratch(tb)
	layers := s.Image(tb).Layers[:1:1]
	for i, files := range above {
		layer := filepath.Join(dir, "layer"+string(rune('0'+i)))
		for path, text := range files {
			if err := put(layer, path, []byte(text), 0o644); err != nil {
				tb.Fatal(err)
			}
		}
		layers = append(layers, layer)
	}
	layout := filepath.Join(dir, name)
	if err := writeLayout(tb.Context(), layout, layers); err != nil {
		tb.Fatal(err)
	}
	return layout
}

// Pull copies an image, made as [Suite.Layout] does, into podman's storage under a
// name. An image that had the name loses it. The image is removed with tb.
func (s *Suite) Pull(tb testing.TB, name string, above ...map[string]string) *PodmanImage {
	tb.Helper()
	layout := s.Layout(tb, name, above...)
	p, err := s.podman()
	if err != nil {
		tb.Fatal(err)
	}
	id, err := p.pull(tb.Context(), layout)
	if err != nil {
		tb.Fatal(err)
	}
	img := p.inspected(tb, id)
	tb.Cleanup(func() { img.remove(tb, "--ignore") })
	return img
}

// inspected returns the image with this id.
func (p *podman) inspected(tb testing.TB, id string) *PodmanImage {
	tb.Helper()
	img := &PodmanImage{ID: id, podman: p}
	var names []string
	img.inspect(tb, "{{json .RepoTags}}", &names)
	if len(names) == 0 {
		tb.Fatalf("image %s has no name", id)
	}
	img.Name = names[0]
	return img
}

func (i *PodmanImage) inspect(tb testing.TB, format string, into any) {
	tb.Helper()
	out, err := must(tb.Context(), i.podman.env, "podman", i.podman.args("image", "inspect", "--format", format, i.ID)...)
	if err == nil {
		err = json.Unmarshal([]byte(strings.TrimSpace(out)), into)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// DiffIDs returns the digests of the image's layers, bottom first.
func (i *PodmanImage) DiffIDs(tb testing.TB) []string {
	tb.Helper()
	var ids []string
	i.inspect(tb, "{{json .RootFS.Layers}}", &ids)
	return ids
}

// Remove removes the image, and the layers that no other image has.
func (i *PodmanImage) Remove(tb testing.TB) {
	tb.Helper()
	i.remove(tb)
}

func (i *PodmanImage) remove(tb testing.TB, options ...string) {
	tb.Helper()
	ctx, cancel := cleanupContext()
	defer cancel()
	args := append(append([]string{"rmi", "--force"}, options...), i.ID)
	if _, err := must(ctx, i.podman.env, "podman", i.podman.args(args...)...); err != nil {
		tb.Errorf("podman rmi: %v", err)
	}
}
