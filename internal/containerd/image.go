package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/grpc"
)

// Bounds of what is read of an image.
const (
	maxConfig  = 4 << 20 // bytes of its configuration
	maxDiffs   = 500     // layers; overlay mounts take as many
	maxConfigs = 256     // configurations whose layers are kept
)

// config returns the digest of the configuration of the image that the container was
// made from.
func (c *Client) config(ctx context.Context, r *record) (string, error) {
	if r.container != nil {
		if !isDigest(r.container.ImageRef) {
			return "", fmt.Errorf("%.80q is not the digest of an image's configuration", r.container.ImageRef)
		}
		return r.container.ImageRef, nil
	}
	manifest, err := c.manifest(ctx, r)
	if err != nil {
		return "", err
	}
	// The service gives each of its images the digest of its configuration as a name.
	all, err := ask(ctx, c, c.images.List, &images.ListImagesRequest{Filters: []string{"target.digest==" + manifest}})
	if err != nil {
		return "", fmt.Errorf("image %s: %w", r.GetImage(), err)
	}
	for _, image := range all.GetImages() {
		if isDigest(image.GetName()) {
			return image.GetName(), nil
		}
	}
	return "", fmt.Errorf("image %s has no name by the digest of its configuration: Kubernetes' service does not manage it", r.GetImage())
}

// manifest returns the digest of the manifest or index of the container's image.
func (c *Client) manifest(ctx context.Context, r *record) (string, error) {
	name := r.GetImage()
	if r.container != nil {
		if isDigest(r.container.ImageDigest) {
			return r.container.ImageDigest, nil
		}
		// By a tag it could be another image by now.
		name = r.container.ImageRef
	}
	image, err := ask(ctx, c, c.images.Get, &images.GetImageRequest{Name: name})
	if err != nil {
		return "", fmt.Errorf("image %.200s: %w", name, err)
	}
	digest := image.GetImage().GetTarget().GetDigest()
	if !isDigest(digest) {
		return "", fmt.Errorf("image %.200s: %.80q is not the digest of a manifest", name, digest)
	}
	return digest, nil
}

// DiffIDs returns the digests of an image's layers as they are unpacked, lowest
// first, given the digest of its configuration.
func (c *Client) DiffIDs(ctx context.Context, config string) ([]string, error) {
	c.mu.Lock()
	known := c.diffs[config]
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	diffs, err := c.readDiffs(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("image configuration %.80s: %w", config, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.diffs) >= maxConfigs {
		clear(c.diffs)
	}
	c.diffs[config] = diffs
	return diffs, nil
}

// readDiffs reads an image's configuration from containerd's content.
func (c *Client) readDiffs(ctx context.Context, config string) ([]string, error) {
	if !isDigest(config) {
		return nil, errors.New("not a digest of sha256")
	}
	// A larger one is cut off, and then has another digest.
	blob, err := ask(ctx, c, c.read, &content.ReadContentRequest{Digest: config, Size: maxConfig})
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(*blob); "sha256:"+hex.EncodeToString(sum[:]) != config {
		return nil, fmt.Errorf("what containerd has under this digest (%d bytes, of at most %d) has another one: its content store is damaged", len(*blob), maxConfig)
	}
	return parseDiffs(*blob)
}

// read returns a part of what is in containerd's content.
func (c *Client) read(ctx context.Context, q *content.ReadContentRequest, o ...grpc.CallOption) (*[]byte, error) {
	stream, err := c.content.Read(ctx, q, o...)
	if err != nil {
		return nil, err
	}
	var data []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &data, nil
		}
		if err != nil {
			return nil, err
		}
		if data = append(data, part.GetData()...); int64(len(data)) > q.GetSize() {
			return nil, fmt.Errorf("more than the %d bytes that were asked for", q.GetSize())
		}
	}
}

// parseDiffs returns the digests of the layers that an image's configuration names,
// lowest first.
func parseDiffs(config []byte) ([]string, error) {
	var image struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, err
	}
	diffs := image.RootFS.DiffIDs
	switch {
	case len(diffs) == 0:
		return nil, errors.New("it names no layers (rootfs.diff_ids)")
	case len(diffs) > maxDiffs:
		return nil, fmt.Errorf("it names %d layers, more than %d", len(diffs), maxDiffs)
	}
	for _, diff := range diffs {
		if !isDigest(diff) {
			return nil, fmt.Errorf("%.80q is not the digest of a layer", diff)
		}
	}
	return diffs, nil
}

// isDigest reports whether s is a digest of sha256, which is all that containerd makes.
func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == ""
}
