package layer

import (
	"context"
	"fmt"
	"strings"
)

// A ContainerdClient is what is asked of containerd, in the container's
// namespace and of its snapshotter.
type ContainerdClient interface {
	// Mounts returns the mounts of an active snapshot (snapshots.Snapshotter.Mounts).
	Mounts(ctx context.Context, key string) ([]ContainerdMount, error)
	// Parent returns the name of a snapshot's parent, "" for none
	// (snapshots.Snapshotter.Stat, Info.Parent).
	Parent(ctx context.Context, key string) (string, error)
	// DiffIDs returns the digests of an image's layers on this platform, lowest
	// first (containerd.Image.RootFS).
	DiffIDs(ctx context.Context, image string) ([]string, error)
}

// A ContainerdMount is a mount as containerd describes it.
type ContainerdMount struct {
	Type    string
	Options []string
}

// Containerd knows the layers of one container of containerd 2: the snapshot's
// mounts have the directories, its ancestors' names are the chain ids of the
// image's layers, and these tie each directory to a digest of the image.
//
// Other names (snapshots that are mapped to a user namespace) are no error: these
// layers have no digest.
type Containerd struct {
	host   *Host
	client ContainerdClient
	key    string
	image  string
}

// NewContainerd returns the resolver for the container whose root filesystem is
// the snapshot key and which was made from image, by its name.
func NewContainerd(h *Host, client ContainerdClient, key, image string) *Containerd {
	return &Containerd{host: h, client: client, key: key, image: image}
}

// Digests implements [Resolver].
func (c *Containerd) Digests(ctx context.Context, directories []string) ([]string, error) {
	known, err := c.layers(ctx)
	if err != nil {
		return nil, fmt.Errorf("containerd's snapshot %s: %w", c.key, err)
	}
	digests := make([]string, len(directories))
	for i, directory := range directories {
		digests[i] = known[directory]
	}
	return digests, nil
}

// layers returns the digests of the snapshot's layers by directory.
func (c *Containerd) layers(ctx context.Context) (map[string]string, error) {
	mounts, err := c.client.Mounts(ctx, c.key)
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	lowers, err := lowersOf(mounts)
	if err != nil || len(lowers) == 0 {
		return nil, err
	}
	chain, err := c.ancestors(ctx)
	if err != nil {
		return nil, err
	}
	diffs, err := c.client.DiffIDs(ctx, c.image)
	if err != nil {
		return nil, fmt.Errorf("layers of image %s: %w", c.image, err)
	}
	if len(chain) != len(lowers) || len(diffs) != len(lowers) {
		return nil, fmt.Errorf("%d directories, %d ancestors and %d layers of image %s do not go together",
			len(lowers), len(chain), len(diffs), c.image)
	}
	return c.tie(lowers, chain, diffs)
}

// tie gives each directory its digest. lowers and chain are topmost first, diffs
// lowest first.
func (c *Containerd) tie(lowers, chain, diffs []string) (map[string]string, error) {
	known := make(map[string]string, len(lowers))
	id := ""
	for i, diff := range diffs {
		if !isDigest(diff) {
			return nil, fmt.Errorf("%.80q is not a digest", diff)
		}
		id = chainOn(id, diff)
		at := len(lowers) - 1 - i
		if chain[at] != id {
			return known, nil // nor can those above it be
		}
		dir, err := c.host.directory(lowers[at])
		if err != nil {
			return nil, err
		}
		known[dir.name] = diff
	}
	return known, nil
}

// ancestors returns the names of the committed snapshots below, topmost first.
func (c *Containerd) ancestors(ctx context.Context) ([]string, error) {
	var names []string
	for key := c.key; ; {
		parent, err := c.client.Parent(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("parent of %s: %w", key, err)
		}
		if parent == "" {
			return names, nil
		}
		if len(names) == maxLayers {
			return nil, fmt.Errorf("more than %d ancestors", maxLayers)
		}
		names = append(names, parent)
		key = parent
	}
}

// lowersOf returns the lower directories of a snapshot, or none if it is not an
// overlay.
func lowersOf(mounts []ContainerdMount) ([]string, error) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return nil, nil
	}
	for _, option := range mounts[0].Options {
		list, found := strings.CutPrefix(option, "lowerdir=")
		if !found {
			continue
		}
		lowers, _, err := splitLower(list)
		return lowers, err
	}
	return nil, nil
}
