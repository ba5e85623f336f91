package containerd

import (
	"context"
	"fmt"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"

	"github.com/assay-project/assay/internal/layer"
)

var _ layer.ContainerdClient = (*Client)(nil)

// Snapshot implements [layer.ContainerdClient].
func (c *Client) Snapshot(ctx context.Context, container string) (layer.ContainerdSnapshot, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	r, err := c.record(ctx, container)
	if err != nil {
		return layer.ContainerdSnapshot{}, err
	}
	config, err := c.config(ctx, r)
	if err != nil {
		return layer.ContainerdSnapshot{}, fmt.Errorf("container %s: %w", container, err)
	}
	return layer.ContainerdSnapshot{Snapshotter: r.GetSnapshotter(), Key: r.GetSnapshotKey(), Config: config}, nil
}

// Mounts implements [layer.ContainerdClient].
func (c *Client) Mounts(ctx context.Context, snapshotter, key string) ([]layer.ContainerdMount, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	got, err := ask(ctx, c, c.snapshots.Mounts, &snapshots.MountsRequest{Snapshotter: snapshotter, Key: key})
	if err != nil {
		return nil, err
	}
	mounts := make([]layer.ContainerdMount, 0, len(got.GetMounts()))
	for _, m := range got.GetMounts() {
		mounts = append(mounts, layer.ContainerdMount{Type: m.GetType(), Options: m.GetOptions()})
	}
	return mounts, nil
}

// Parent implements [layer.ContainerdClient].
func (c *Client) Parent(ctx context.Context, snapshotter, key string) (string, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	got, err := ask(ctx, c, c.snapshots.Stat, &snapshots.StatSnapshotRequest{Snapshotter: snapshotter, Key: key})
	if err != nil {
		return "", err
	}
	return got.GetInfo().GetParent(), nil
}
