package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A ContainerdClient is what is asked of containerd, in the containers' namespace.
type ContainerdClient interface {
	// Snapshot returns what holds a container's root filesystem, by the container's id.
	Snapshot(ctx context.Context, container string) (ContainerdSnapshot, error)
	// Mounts returns the mounts of an active snapshot (snapshots.Snapshotter.Mounts).
	Mounts(ctx context.Context, snapshotter, key string) ([]ContainerdMount, error)
	// Parent returns the name of a snapshot's parent, "" for none
	// (snapshots.Snapshotter.Stat, Info.Parent).
	Parent(ctx context.Context, snapshotter, key string) (string, error)
	// DiffIDs returns the digests of an image's layers, lowest first, from its
	// configuration, whose digest it has verified.
	DiffIDs(ctx context.Context, config string) ([]string, error)
}

// A ContainerdSnapshot is what holds a container's root filesystem.
type ContainerdSnapshot struct {
	Snapshotter, Key string
	Config           string // digest of the configuration of the image it was made from
}

// A ContainerdMount is a mount as containerd describes it.
type ContainerdMount struct {
	Type    string
	Options []string
}

// Containerd knows the layers of the containers of one containerd: a snapshot's
// mounts have the directories, its ancestors' names are the chain ids of the image's
// layers, and these tie each directory to a digest of the image.
//
// Other names (snapshots that are mapped to a user namespace) are no error: these
// layers have no digest.
type Containerd struct {
	host   *Host
	client ContainerdClient
}

// NewContainerd returns what knows the layers of a containerd's containers.
func NewContainerd(h *Host, client ContainerdClient) *Containerd {
	return &Containerd{host: h, client: client}
}

// For returns the resolver for one container, by its id. Nothing is asked before the
// resolver is.
func (c *Containerd) For(container string) Resolver { return &containerdLayers{c, container} }

// containerdLayers knows the layers of one container.
type containerdLayers struct {
	*Containerd
	container string
}

// Digests implements [Resolver].
func (c *containerdLayers) Digests(ctx context.Context, directories []string) ([]string, error) {
	snapshot, err := c.client.Snapshot(ctx, c.container)
	if err != nil {
		return nil, fmt.Errorf("layers of a container of containerd: %w", err)
	}
	known, err := c.layers(ctx, snapshot)
	if err != nil {
		return nil, fmt.Errorf("layers of container %s, snapshotter %s: %w", c.container, snapshot.Snapshotter, err)
	}
	digests := make([]string, len(directories))
	for i, directory := range directories {
		digests[i] = known[directory]
	}
	return digests, nil
}

// layers returns the digests of the snapshot's layers by directory.
func (c *Containerd) layers(ctx context.Context, s ContainerdSnapshot) (map[string]string, error) {
	mounts, err := c.client.Mounts(ctx, s.Snapshotter, s.Key)
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	lowers, err := lowersOf(mounts)
	if err != nil {
		return nil, err
	}
	chain, err := c.ancestors(ctx, s)
	if err != nil {
		return nil, err
	}
	diffs, err := c.client.DiffIDs(ctx, s.Config)
	if err != nil {
		return nil, err
	}
	if len(chain) != len(lowers) || len(diffs) != len(lowers) {
		return nil, fmt.Errorf("%d directories, %d ancestors and %d layers of image %s do not go together",
			len(lowers), len(chain), len(diffs), s.Config)
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
func (c *Containerd) ancestors(ctx context.Context, s ContainerdSnapshot) ([]string, error) {
	var names []string
	for key := s.Key; ; {
		parent, err := c.client.Parent(ctx, s.Snapshotter, key)
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

// lowersOf returns the lower directories of a snapshot. Snapshotters whose layers are
// other filesystems (erofs) describe how to mount these first, in mounts of their own.
func lowersOf(mounts []ContainerdMount) ([]string, error) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		kinds := make([]string, len(mounts))
		for i := range mounts {
			kinds[i] = mounts[i].Type
		}
		return nil, fmt.Errorf("its layers are not the directories of one overlay (its mounts: %.200s)", strings.Join(kinds, ", "))
	}
	for _, option := range mounts[0].Options {
		if list, found := strings.CutPrefix(option, "lowerdir="); found {
			lowers, _, err := splitLower(list)
			return lowers, err
		}
	}
	return nil, errors.New("its overlay has no lower directories")
}
