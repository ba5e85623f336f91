package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors of the look-ups by digest and by image.
var (
	// ErrUnknownLayer says that a storage does not have a layer.
	ErrUnknownLayer = errors.New("no such layer")
	// ErrUnknownImage says that a storage does not have an image.
	ErrUnknownImage = errors.New("no such image")
)

// LayersByDigest returns the directories below the storage root that hold the layer
// with a digest ("sha256:…", its diff id). There are several if it is in images on
// top of different ones. Errors wrap [ErrUnknownLayer] if there is none.
func (c *ContainersStorage) LayersByDigest(root, digest string) ([]Directory, error) {
	at, layers, err := c.storage(root)
	if err != nil {
		return nil, err
	}
	var found []Directory
	for _, id := range withDigest(layers.digests, digest) {
		dir, err := c.layer(at, id, digest)
		if err != nil {
			return nil, err
		}
		found = append(found, dir)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("containers-storage at %s: %w: %.80q", at, ErrUnknownLayer, digest)
	}
	return found, nil
}

// Image returns the directories below the storage root of an image's layers, topmost
// first. The image is named as the storage has it, with registry and tag
// ("docker.io/library/debian:12"), or by its id, of which twelve digits will do, or by
// the digest of its manifest. Copies of its top layer for user namespaces are not
// among them. Errors wrap [ErrUnknownImage] if there is none.
func (c *ContainersStorage) Image(root, name string) ([]Directory, error) {
	at, layers, err := c.storage(root)
	if err != nil {
		return nil, err
	}
	top, err := c.topLayer(at, name)
	if err != nil {
		return nil, fmt.Errorf("containers-storage at %s: %w", at, err)
	}
	ids, err := ancestry(layers.parents, top)
	if err != nil {
		return nil, fmt.Errorf("containers-storage at %s: image %.200q: %w", at, name, err)
	}
	found := make([]Directory, 0, len(ids))
	for _, id := range ids {
		dir, err := c.layer(at, id, layers.digests[id])
		if err != nil {
			return nil, err
		}
		found = append(found, dir)
	}
	return found, nil
}

// storage returns the storage at root, by its path without links.
func (c *ContainersStorage) storage(root string) (string, layersFile, error) {
	dir, err := c.host.directory(root)
	if err != nil {
		return "", layersFile{}, err
	}
	layers, err := c.layers(dir.name)
	if err != nil {
		return "", layersFile{}, fmt.Errorf("containers-storage at %s: %w", dir.name, err)
	}
	return dir.name, layers, nil
}

// layer returns the layer of a storage with this id.
func (c *ContainersStorage) layer(root, id, digest string) (Directory, error) {
	return c.host.layerAt(root+"/overlay/"+id+"/diff", digest)
}

// layerAt returns the layer in a directory.
func (h *Host) layerAt(name, digest string) (Directory, error) {
	dir, err := h.directory(name)
	if err != nil {
		return Directory{}, fmt.Errorf("layer %s: %w", digest, err)
	}
	return Directory{Layer: Layer{Digest: digest, Dir: dir.id}, Path: dir.name}, nil
}

// withDigest returns the ids of the layers with a digest, in order.
func withDigest(digests map[string]string, digest string) []string {
	var ids []string
	for id, d := range digests {
		if d == digest {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// ancestry returns the layer top and all below it.
func ancestry(parents map[string]string, top string) ([]string, error) {
	var ids []string
	for id := top; id != ""; {
		parent, ok := parents[id]
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrUnknownLayer, id)
		}
		if len(ids) == maxLayers {
			return nil, fmt.Errorf("more than %d layers", maxLayers)
		}
		ids = append(ids, id)
		id = parent
	}
	return ids, nil
}

// topLayer returns the id of an image's topmost layer, "" for an image without.
func (c *ContainersStorage) topLayer(root, name string) (string, error) {
	f, err := c.host.openStored(root+"/overlay-images/images.json", unix.S_IFREG)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := f.read(maxLayersFile)
	if err != nil {
		return "", err
	}
	images, err := parseImages(data)
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	top, found := "", false
	for _, image := range images {
		if !image.is(name) {
			continue
		}
		if found && image.Top != top {
			return "", fmt.Errorf("several images are called %.200q", name)
		}
		top, found = image.Top, true
	}
	if !found {
		return "", fmt.Errorf("%w: %.200q", ErrUnknownImage, name)
	}
	return top, nil
}

// A storedImage is what is needed of one entry of images.json: type Image in
// images.go of github.com/containers/storage.
type storedImage struct {
	ID     string   `json:"id"`
	Digest string   `json:"digest"` // of the manifest
	Names  []string `json:"names"`
	Top    string   `json:"layer"` // id of the topmost layer
}

// shortID is how many digits of an id podman shows, and the fewest that are taken for
// the beginning of one.
const shortID = 12

// is reports whether the image is called name.
func (i *storedImage) is(name string) bool {
	short := len(name) >= shortID && isHex(name) && strings.HasPrefix(i.ID, name)
	return name != "" && (short || name == i.ID || name == i.Digest || slices.Contains(i.Names, name))
}

// parseImages returns the images of images.json. As with layers.json, anything that
// is not as it should be makes the whole file worthless.
func parseImages(data []byte) ([]storedImage, error) {
	var images []storedImage
	err := eachOf(data, func(i *storedImage) error {
		switch {
		case i.ID == "":
			return errors.New("no id")
		case i.Top != "" && !isLayerID(i.Top):
			return fmt.Errorf("%.80q is not the id of a layer", i.Top)
		case i.Digest != "" && !isDigest(i.Digest):
			return fmt.Errorf("%.80q is not a digest", i.Digest)
		}
		images = append(images, *i)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list of images: %w", err)
	}
	return images, nil
}

// LayersByDigest returns the directories below docker's root (/var/lib/docker) that
// hold the layer with a digest ("sha256:…", its diff id). There are several if it is
// in images on top of different ones. Errors wrap [ErrUnknownLayer] if there is none.
func (d *Docker) LayersByDigest(ctx context.Context, root, digest string) ([]Directory, error) {
	at, err := d.host.directory(root)
	if err != nil {
		return nil, err
	}
	known, err := d.layers(ctx, at.name+"/image/overlay2/layerdb/sha256")
	if err != nil {
		return nil, fmt.Errorf("docker's storage at %s: %w", at.name, err)
	}
	var found []Directory
	for _, id := range withDigest(known, digest) {
		dir, err := d.host.layerAt(at.name+"/overlay2/"+id+"/diff", digest)
		if err != nil {
			return nil, err
		}
		found = append(found, dir)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("docker's storage at %s: %w: %.80q", at.name, ErrUnknownLayer, digest)
	}
	return found, nil
}
