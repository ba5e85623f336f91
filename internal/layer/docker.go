package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLayerFile bounds the files of docker's layer database, in bytes: each holds
// one id.
const maxLayerFile = 256

// Docker knows the layers of dockerd with its own image store and the overlay2
// driver: the directory ROOT/overlay2/ID/diff is the layer of
// ROOT/image/overlay2/layerdb/sha256/CHAIN whose cache-id is ID. A container's
// -init directory is no image layer, and has no digest. It finds ROOT by itself.
// It may be used by several goroutines. With the containerd image store, see
// [Containerd].
//
// The database is read again when an entry was added or removed.
type Docker struct {
	host *Host
	mu   sync.Mutex
	read map[string]layersFile // by name of the database's directory
}

// NewDocker returns a resolver for all storages below the host's root.
func NewDocker(h *Host) *Docker { return &Docker{host: h, read: map[string]layersFile{}} }

// Digests implements [Resolver].
func (d *Docker) Digests(ctx context.Context, directories []string) ([]string, error) {
	digests := make([]string, len(directories))
	roots := map[string]map[string]string{}
	for i, directory := range directories {
		root, id, ok := layerID(directory, "overlay2")
		if !ok || strings.HasSuffix(id, "-init") {
			continue
		}
		known, seen := roots[root]
		if !seen {
			var err error
			if known, err = d.layers(ctx, root+"/image/overlay2/layerdb/sha256"); err != nil {
				return nil, fmt.Errorf("docker's storage at %s: %w", root, err)
			}
			roots[root] = known
		}
		digests[i] = known[id]
	}
	return digests, nil
}

// layers returns the digests of a database by cache id.
func (d *Docker) layers(ctx context.Context, database string) (map[string]string, error) {
	f, err := d.host.openStored(database, unix.S_IFDIR)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := d.read[database]; ok && known.id == f.id {
		return known.digests, nil
	}
	digests, err := d.index(ctx, f)
	if err != nil {
		return nil, err
	}
	if len(d.read) >= maxStorages {
		clear(d.read)
	}
	d.read[database] = layersFile{id: f.id, digests: digests}
	return digests, nil
}

// index reads a database.
func (d *Docker) index(ctx context.Context, database stored) (map[string]string, error) {
	digests := map[string]string{}
	for {
		names, err := database.Readdirnames(256)
		if errors.Is(err, io.EOF) {
			return digests, nil
		}
		if err != nil {
			return nil, fmt.Errorf("layer database: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("layer database: %w", err)
		}
		for _, chain := range names {
			entry, err := d.entry(database.Name(), chain)
			if errors.Is(err, unix.ENOENT) {
				continue // removed in the meantime
			}
			if err != nil {
				return nil, err
			}
			if _, twice := digests[entry.cacheID]; twice {
				return nil, fmt.Errorf("two layers have the cache id %s", entry.cacheID)
			}
			digests[entry.cacheID] = entry.diff
		}
		if len(digests) > maxStored {
			return nil, errTooMany
		}
	}
}

// A dockerLayer is one entry of the database.
type dockerLayer struct{ cacheID, diff, parent string }

// entry reads the entry of a layer and checks that it is of this chain.
func (d *Docker) entry(database, chain string) (dockerLayer, error) {
	dir := database + "/" + chain + "/"
	var l dockerLayer
	for _, file := range []struct {
		name     string
		value    *string
		optional bool
	}{{"cache-id", &l.cacheID, false}, {"diff", &l.diff, false}, {"parent", &l.parent, true}} {
		value, err := d.value(dir + file.name)
		if err != nil && (!file.optional || !errors.Is(err, unix.ENOENT)) {
			return dockerLayer{}, err
		}
		*file.value = value
	}
	if err := l.check("sha256:" + chain); err != nil {
		return dockerLayer{}, fmt.Errorf("%s: %w", dir, err)
	}
	return l, nil
}

// value reads a file that holds one word.
func (d *Docker) value(name string) (string, error) {
	f, err := d.host.openStored(name, unix.S_IFREG)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := f.read(maxLayerFile)
	return strings.TrimSpace(string(data)), err
}

// check reports why the entry is not that of the chain.
func (l dockerLayer) check(chain string) error {
	switch {
	case l.cacheID == "" || strings.ContainsAny(l.cacheID, "/\x00 \n") || l.cacheID == "." || l.cacheID == "..":
		return fmt.Errorf("%.80q is not a cache id", l.cacheID)
	case !isDigest(l.diff):
		return fmt.Errorf("%.80q is not a digest", l.diff)
	case l.parent != "" && !isDigest(l.parent):
		return fmt.Errorf("%.80q is not a digest", l.parent)
	case chainOn(l.parent, l.diff) != chain:
		return errors.New("diff and parent do not make this chain id")
	}
	return nil
}

// chainOn returns the chain id of a layer on its parent's, "" for the lowest
// (OCI image specification, config.md, "Layer ChainID").
func chainOn(parent, diff string) string {
	if parent == "" {
		return diff
	}
	sum := sha256.Sum256([]byte(parent + " " + diff))
	return "sha256:" + hex.EncodeToString(sum[:])
}
