package layer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Located is a layer with its directory on the host.
type Located struct {
	Layer
	Directory string
}

// ErrNotStored says that no storage that is known has the image or layer.
var ErrNotStored = errors.New("no storage that the agent knows has it")

// defaultStorage is where podman and CRI-O keep images unless told otherwise
// (containers-storage.conf(5), graphroot).
const defaultStorage = "/var/lib/containers/storage"

// maxImagesFile bounds images.json, in bytes.
const maxImagesFile = 64 << 20

// Locate returns the layer at a directory of the host, without a digest.
func (h *Host) Locate(dir string) (Located, error) {
	d, err := h.directory(dir)
	if err != nil {
		return Located{}, fmt.Errorf("%w: %w", ErrNotStored, err)
	}
	return Located{Layer: Layer{Dir: d.id}, Directory: d.name}, nil
}

// Image returns the layers of an image, topmost first, by one of its names ("name",
// "name:tag", with or without the registry) or by the beginning of its id. It looks
// in podman's own storage, and in those that a guarded container came from. The
// error is ErrNotStored if there is none.
func (c *ContainersStorage) Image(name string) ([]Located, error) {
	problem := ErrNotStored
	for _, root := range c.roots() {
		layers, err := c.imageIn(root, name)
		if err == nil {
			return layers, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, ErrNotStored) {
			problem = errors.Join(problem, err)
		}
	}
	return nil, fmt.Errorf("image %q: %w", name, problem)
}

// LayerByDigest returns the layer of a storage that has this digest (its diff id).
func (c *ContainersStorage) LayerByDigest(digest string) (Located, error) {
	problem := ErrNotStored
	for _, root := range c.roots() {
		known, err := c.layers(root)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) {
				problem = errors.Join(problem, err)
			}
			continue
		}
		for id, diff := range known {
			if diff != digest {
				continue
			}
			if l, err := c.located(root, id, diff); err == nil {
				return l, nil
			}
		}
	}
	return Located{}, fmt.Errorf("layer %s: %w", digest, problem)
}

// roots lists the storages.
func (c *ContainersStorage) roots() []string {
	roots := []string{defaultStorage}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.read {
		if root, ok := strings.CutSuffix(name, "/overlay-layers/layers.json"); ok && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	return roots
}

func (c *ContainersStorage) imageIn(root, name string) ([]Located, error) {
	var images []storedImage
	if err := c.decode(root+"/overlay-images/images.json", maxImagesFile, &images); err != nil {
		return nil, err
	}
	top, err := findImage(images, name)
	if err != nil {
		return nil, err
	}
	var chain []chainLayer
	if err := c.decode(root+"/overlay-layers/layers.json", maxLayersFile, &chain); err != nil {
		return nil, err
	}
	known, err := c.layers(root)
	if err != nil {
		return nil, err
	}
	ids, err := walkChain(chain, top)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	var layers []Located
	for _, id := range ids {
		l, err := c.located(root, id, known[id])
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// located finds a layer's directory.
func (c *ContainersStorage) located(root, id, digest string) (Located, error) {
	l, err := c.host.Locate(root + "/overlay/" + id + "/diff")
	l.Digest = digest
	return l, err
}

// decode reads a file of the storage.
func (c *ContainersStorage) decode(name string, limit int64, into any) error {
	f, err := c.host.openStored(name, unix.S_IFREG)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := f.read(limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// A storedImage is what is needed of one entry of images.json: type Image in
// images.go of github.com/containers/storage.
type storedImage struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Top   string   `json:"layer"`
}

// A chainLayer is what is needed of one entry of layers.json besides its digest.
type chainLayer struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
}

// findImage returns the topmost layer of the image that goes by a name.
func findImage(images []storedImage, name string) (top string, err error) {
	var found []string
	for _, image := range images {
		byID := len(name) >= 6 && strings.HasPrefix(image.ID, strings.TrimPrefix(name, "sha256:"))
		if byID || slices.ContainsFunc(image.Names, func(full string) bool { return goesBy(full, name) }) {
			found = append(found, image.Top)
		}
	}
	slices.Sort(found)
	switch found = slices.Compact(found); len(found) {
	case 0:
		return "", ErrNotStored
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%q could be any of %d images: use more of its name or id", name, len(found))
}

// goesBy reports whether an image's full name ("registry/path/name:tag") ends in name,
// with or without the tag "latest".
func goesBy(full, name string) bool {
	if name == "" {
		return false
	}
	for _, candidate := range []string{name, name + ":latest"} {
		if full == candidate || strings.HasSuffix(full, "/"+candidate) {
			return true
		}
	}
	return false
}

// walkChain returns the ids from the topmost layer down.
func walkChain(layers []chainLayer, top string) ([]string, error) {
	parents := make(map[string]string, len(layers))
	for _, l := range layers {
		parents[l.ID] = l.Parent
	}
	var ids []string
	for id := top; id != ""; id = parents[id] {
		if _, known := parents[id]; !known || !isLayerID(id) {
			return nil, fmt.Errorf("layer %.80q is not in the list of layers", id)
		}
		if ids = append(ids, id); len(ids) > maxLayers {
			return nil, errors.New("more layers than an overlay can have, or layers in a circle")
		}
	}
	return ids, nil
}
