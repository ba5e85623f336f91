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

// A layersFile is what was read of a file. It is not changed any more.
type layersFile struct {
	id      Identity
	digests map[string]string // by layer id
	parents map[string]string // by layer id, of all layers; "" for the lowest
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
			layers, err := c.layers(root)
			if err != nil {
				return nil, fmt.Errorf("containers-storage at %s: %w", root, err)
			}
			known = layers.digests
			roots[root] = known
		}
		digests[i] = known[id]
	}
	return digests, nil
}

// layers returns what is known of a storage's layers.
func (c *ContainersStorage) layers(root string) (layersFile, error) {
	layers, err := c.file(root + "/overlay-layers/layers.json")
	if err != nil {
		return layersFile{}, err
	}
	extra, err := c.file(root + "/overlay-layers/volatile-layers.json")
	if errors.Is(err, unix.ENOENT) || err == nil && len(extra.parents) == 0 {
		return layers, nil
	}
	if err != nil {
		return layersFile{}, err
	}
	merged := layersFile{digests: maps.Clone(extra.digests), parents: maps.Clone(extra.parents)}
	maps.Copy(merged.digests, layers.digests)
	maps.Copy(merged.parents, layers.parents)
	return merged, nil
}

// file returns what is in one file.
func (c *ContainersStorage) file(name string) (layersFile, error) {
	f, err := c.host.openStored(name, unix.S_IFREG)
	if err != nil {
		return layersFile{}, err
	}
	defer f.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.read[name]; ok && known.id == f.id {
		return known, nil
	}
	data, err := f.read(maxLayersFile)
	if err != nil {
		return layersFile{}, err
	}
	layers, err := parseLayers(data)
	if err != nil {
		return layersFile{}, fmt.Errorf("%s: %w", name, err)
	}
	layers.id = f.id
	if len(c.read) >= maxStorages {
		clear(c.read)
	}
	c.read[name] = layers
	return layers, nil
}

// maxStorages bounds what is kept of storages: they come and go with whoever
// starts podman with a --root of its own.
const maxStorages = 32

// isLayerID reports whether id is one of containers-storage.
func isLayerID(id string) bool { return len(id) == 64 && isHex(id) }

// A storedLayer is what is needed of one entry of layers.json: type Layer in
// layers.go of github.com/containers/storage.
type storedLayer struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
	Diff   string `json:"diff-digest"`
	Flags  struct {
		Incomplete bool `json:"incomplete"`
	} `json:"flags"`
}

// check reports why the entry is not one of a layer.
func (l *storedLayer) check() error {
	switch {
	case !isLayerID(l.ID):
		return fmt.Errorf("%.80q is not the id of a layer", l.ID)
	case l.Parent != "" && !isLayerID(l.Parent):
		return fmt.Errorf("%.80q is not the id of a parent", l.Parent)
	case l.Diff != "" && !isDigest(l.Diff):
		return fmt.Errorf("%.80q is not a digest", l.Diff)
	}
	return nil
}

// parseLayers returns what layers.json says of each layer. Layers without a digest,
// such as containers' own, and those that were not unpacked to the end have none.
// Anything that is not as it should be makes the whole file worthless.
func parseLayers(data []byte) (layersFile, error) {
	found := layersFile{digests: map[string]string{}, parents: map[string]string{}}
	err := eachOf(data, func(l *storedLayer) error {
		if err := l.check(); err != nil {
			return err
		}
		if _, twice := found.parents[l.ID]; twice {
			return fmt.Errorf("%s is there twice", l.ID)
		}
		found.parents[l.ID] = l.Parent
		if l.Diff != "" && !l.Flags.Incomplete {
			found.digests[l.ID] = l.Diff
		}
		return nil
	})
	if err != nil {
		return layersFile{}, fmt.Errorf("list of layers: %w", err)
	}
	return found, nil
}

// eachOf gives take every entry of a list in JSON, of no more than maxStored, with
// nothing before or after the list.
func eachOf[T any](data []byte, take func(*T) error) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(errors.New("not a list"), err)
	}
	for n := 0; d.More(); n++ {
		var entry T
		err := d.Decode(&entry)
		if err == nil && n >= maxStored {
			err = errTooMany
		}
		if err == nil {
			err = take(&entry)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("its end: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}
