package layer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLayersFile bounds layers.json, in bytes. A layer takes some 600.
const maxLayersFile = 128 << 20

// ContainersStorage knows the layers of podman, CRI-O and buildah: the directory
// ROOT/overlay/ID/diff is the layer ID of ROOT/overlay-layers/layers.json, or of
// volatile-layers.json next to it. It finds ROOT by itself. It may be used by
// several goroutines.
//
// The files are read again when their identity changed. Files that others than
// root could have written are refused: a user's own podman names layers as the
// user likes.
type ContainersStorage struct {
	host *Host
	mu   sync.Mutex
	read map[string]layersFile // by name
}

// A layersFile is what was read of a file.
type layersFile struct {
	id      Identity
	digests map[string]string // by layer id
}

// NewContainersStorage returns a resolver for all storages below the host's root.
func NewContainersStorage(h *Host) *ContainersStorage {
	return &ContainersStorage{host: h, read: map[string]layersFile{}}
}

// Digests implements [Resolver].
func (c *ContainersStorage) Digests(_ context.Context, directories []string) ([]string, error) {
	digests := make([]string, len(directories))
	roots := map[string]map[string]string{}
	for i, directory := range directories {
		root, id, ok := layerID(directory, "overlay")
		if !ok || !isLayerID(id) {
			continue
		}
		known, seen := roots[root]
		if !seen {
			var err error
			if known, err = c.layers(root); err != nil {
				return nil, fmt.Errorf("containers-storage at %s: %w", root, err)
			}
			roots[root] = known
		}
		digests[i] = known[id]
	}
	return digests, nil
}

// layers returns the digests of a storage's layers by id.
func (c *ContainersStorage) layers(root string) (map[string]string, error) {
	digests, err := c.file(root + "/overlay-layers/layers.json")
	if err != nil {
		return nil, err
	}
	extra, err := c.file(root + "/overlay-layers/volatile-layers.json")
	if errors.Is(err, unix.ENOENT) || err == nil && len(extra) == 0 {
		return digests, nil
	}
	if err != nil {
		return nil, err
	}
	merged := maps.Clone(extra)
	maps.Copy(merged, digests)
	return merged, nil
}

// file returns the digests of one file. What it returns is not changed any more.
func (c *ContainersStorage) file(name string) (map[string]string, error) {
	f, err := c.host.openStored(name, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.read[name]; ok && known.id == f.id {
		return known.digests, nil
	}
	data, err := f.read(maxLayersFile)
	if err != nil {
		return nil, err
	}
	digests, err := parseLayers(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(c.read) >= maxStorages {
		clear(c.read)
	}
	c.read[name] = layersFile{id: f.id, digests: digests}
	return digests, nil
}

// maxStorages bounds what is kept of storages: they come and go with whoever
// starts podman with a --root of its own.
const maxStorages = 32

// isLayerID reports whether id is one of containers-storage.
func isLayerID(id string) bool { return len(id) == 64 && isHex(id) }

// A storedLayer is what is needed of one entry of layers.json: type Layer in
// layers.go of github.com/containers/storage.
type storedLayer struct {
	ID    string `json:"id"`
	Diff  string `json:"diff-digest"`
	Flags struct {
		Incomplete bool `json:"incomplete"`
	} `json:"flags"`
}

// parseLayers returns the digests of layers.json by layer id. Layers without a
// digest, such as containers' own, and those that were not unpacked to the end have
// none. Anything that is not as it should be makes the whole file worthless.
func parseLayers(data []byte) (map[string]string, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("not a list of layers: %w", errors.Join(err))
	}
	digests := map[string]string{}
	ids := map[string]bool{}
	for d.More() {
		var l storedLayer
		if err := d.Decode(&l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", len(ids), err)
		}
		switch {
		case !isLayerID(l.ID):
			return nil, fmt.Errorf("layer %d: %.80q is not the id of a layer", len(ids), l.ID)
		case ids[l.ID]:
			return nil, fmt.Errorf("layer %s is there twice", l.ID)
		case l.Diff != "" && !isDigest(l.Diff):
			return nil, fmt.Errorf("layer %s: %.80q is not a digest", l.ID, l.Diff)
		case len(ids) >= maxStored:
			return nil, errTooMany
		}
		ids[l.ID] = true
		if l.Diff != "" && !l.Flags.Incomplete {
			digests[l.ID] = l.Diff
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("list of layers: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the list of layers")
	}
	return digests, nil
}
