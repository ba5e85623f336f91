package containerd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/layer"
)

// store adds content to a containerd, and returns its digest.
func (s *state) store(blob []byte) string {
	sum := sha256.Sum256(blob)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	s.blobs[digest] = blob
	return digest
}

// TestLayers: the chain of a container's snapshots is that of its image's layers, for
// the pod's own as well; containerd is asked for an image's configuration once.
func TestLayers(t *testing.T) {
	for _, version := range recorded(t) {
		t.Run(version, func(t *testing.T) {
			s := loadState(t, version)
			c := playing(t, s)
			container, pod := s.ids(t)
			for id, want := range map[string]layer.ContainerdSnapshot{
				container: {Snapshotter: "overlayfs", Key: container, Config: appConfig},
				pod:       {Snapshotter: "overlayfs", Key: pod, Config: pauseConfig},
			} {
				got, err := c.Snapshot(t.Context(), id)
				must(t, err)
				if got != want {
					t.Errorf("%+v, want %+v", got, want)
				}
				wantChain(t, c, got)
			}
			before := s.reads.Load()
			for range 2 {
				if diffs, err := c.DiffIDs(t.Context(), appConfig); err != nil || len(diffs) != 4 {
					t.Errorf("%q, %v", diffs, err)
				}
			}
			if again := s.reads.Load() - before; again != 0 {
				t.Errorf("the configuration was read %d times more", again)
			}
		})
	}
}

// wantChain fails t unless the snapshot has as many ancestors and lower directories as
// its image has layers, and the first of them is the image's first.
func wantChain(t *testing.T, c *Client, s layer.ContainerdSnapshot) {
	t.Helper()
	diffs, err := c.DiffIDs(t.Context(), s.Config)
	must(t, err)
	var chain []string
	for key := s.Key; ; {
		parent, err := c.Parent(t.Context(), s.Snapshotter, key)
		must(t, err)
		if parent == "" {
			break
		}
		chain, key = append(chain, parent), parent
	}
	mounts, err := c.Mounts(t.Context(), s.Snapshotter, s.Key)
	must(t, err)
	if len(chain) != len(diffs) || chain[len(chain)-1] != diffs[0] {
		t.Errorf("ancestors %q of layers %q", chain, diffs)
	}
	lower := func(o string) bool { return strings.HasPrefix(o, "lowerdir=") && strings.Count(o, ":") == len(diffs)-1 }
	if len(mounts) != 1 || mounts[0].Type != "overlay" || !slices.ContainsFunc(mounts[0].Options, lower) {
		t.Errorf("mounts %+v for %d layers", mounts, len(diffs))
	}
}

// TestSnapshotRefuses: what was not made of an image that is known has no layers that
// could be named.
func TestSnapshotRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(s *state, container, pod string)
		pod   bool
		words string
	}{
		"no configuration": {func(s *state, c, _ string) {
			edit(s.containers[c], containerExtension, func(m map[string]any) { m["ImageRef"] = "assay.test/app:1" })
		}, false, "not the digest of an image's configuration"},
		"image removed":    {func(s *state, _, _ string) { delete(s.images, "assay.test/pause:1") }, true, "image assay.test/pause:1"},
		"not managed":      {func(s *state, _, _ string) { delete(s.images, pauseConfig) }, true, "does not manage it"},
		"of no manifest":   {func(s *state, _, _ string) { s.images["assay.test/pause:1"].Target.Digest = "x" }, true, "not the digest of a manifest"},
		"of no Kubernetes": {func(s *state, c, _ string) { s.containers[c].Extensions = nil }, false, ErrNotKubernetes.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := loadState(t, recorded(t)[0])
			container, pod := s.ids(t)
			tt.spoil(s, container, pod)
			id := container
			if tt.pod {
				id = pod
			}
			got, err := playing(t, s).Snapshot(t.Context(), id)
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestDiffIDsRefuses: what is not the configuration of this digest names no layers, and
// is not kept.
func TestDiffIDsRefuses(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	good := s.blobs[appConfig]
	c := playing(t, s)
	for name, tt := range map[string]struct {
		digest, words string
		blob          []byte // under digest
	}{
		"changed":     {appConfig, "content store is damaged", bytes.Replace(good, []byte("sha256:c"), []byte("sha256:d"), 1)},
		"cut off":     {appConfig, "content store is damaged", good[:len(good)-1]},
		"empty":       {appConfig, "content store is damaged", nil},
		"too large":   {s.store(append(bytes.Repeat([]byte(" "), maxConfig), good...)), fmt.Sprintf("of at most %d", maxConfig), nil},
		"not there":   {"sha256:" + strings.Repeat("0", 64), "not found", nil},
		"no digest":   {"latest", "not a digest", nil},
		"no layers":   {s.store([]byte(`{"rootfs":{"type":"layers"}}`)), "names no layers", nil},
		"not JSON":    {s.store([]byte(`rootfs`)), "invalid character", nil},
		"no digests":  {s.store([]byte(`{"rootfs":{"diff_ids":["sha256:00"]}}`)), "not the digest of a layer", nil},
		"many layers": {s.store([]byte(`{"rootfs":{"diff_ids":[` + strings.Repeat(`"x",`, maxDiffs) + `"x"]}}`)), "more than 500", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.digest == appConfig {
				s.blobs[appConfig] = tt.blob
			}
			diffs, err := c.DiffIDs(t.Context(), tt.digest)
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%q, %v", diffs, err)
			}
		})
	}
	s.blobs[appConfig] = good
	if diffs, err := c.DiffIDs(t.Context(), appConfig); err != nil || len(diffs) != 4 {
		t.Errorf("%q, %v", diffs, err)
	}
}

// TestDiffIDsKept: what is kept of images is bounded.
func TestDiffIDsKept(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	c := playing(t, s)
	for i := range maxConfigs + 10 {
		if _, err := c.DiffIDs(t.Context(), s.store(fmt.Appendf(nil, `{"n":%d,"rootfs":{"diff_ids":[%q]}}`, i, appConfig))); err != nil {
			t.Fatal(err)
		}
		if len(c.diffs) > maxConfigs {
			t.Fatalf("%d are kept", len(c.diffs))
		}
	}
}

func FuzzDiffIDs(f *testing.F) {
	for _, version := range recorded(f) {
		for _, blob := range loadState(f, version).blobs {
			f.Add(blob)
		}
	}
	f.Add([]byte(`{"rootfs":{"diff_ids":[]}}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:` + strings.Repeat("A", 64) + `"]}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		diffs, err := parseDiffs(config)
		if err == nil && (len(diffs) == 0 || len(diffs) > maxDiffs) {
			t.Errorf("%d layers", len(diffs))
		}
		for _, diff := range diffs {
			if !isDigest(diff) {
				t.Errorf("%q of %q", diff, config)
			}
		}
	})
}
