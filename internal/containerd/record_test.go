package containerd

import (
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// recordFrom is the socket of a real containerd whose answers TestRecorded writes to
// testdata; see the README there.
var recordFrom = flag.String("record", "", "the socket of a containerd whose answers become testdata") //nolint:gochecknoglobals // a flag

// TestRecorded: the recordings are there, and whole. With -record it makes one.
func TestRecorded(t *testing.T) {
	if *recordFrom != "" {
		recordAll(t, *recordFrom)
		return
	}
	for _, version := range recorded(t) {
		s := loadState(t, version)
		if len(s.containers) < 3 || len(s.sandboxes) == 0 || len(s.images) == 0 || len(s.snapshots) == 0 || len(s.mounts) == 0 || len(s.blobs) == 0 {
			t.Errorf("%s lacks something", version)
		}
	}
}

// recorded lists the recordings, by containerd's version.
func recorded(tb testing.TB) []string {
	tb.Helper()
	dirs, err := filepath.Glob("testdata/[0-9]*")
	if err != nil || len(dirs) < 2 {
		tb.Fatalf("recordings: %q, %v", dirs, err)
	}
	for i := range dirs {
		dirs[i] = filepath.Base(dirs[i])
	}
	return dirs
}

// recordAll writes down what a containerd has.
func recordAll(t *testing.T, socket string) {
	t.Helper()
	c := client(t, Options{Socket: socket})
	ctx, cancel := c.bound(t.Context())
	defer cancel()
	version, err := c.versions.Version(ctx, nothing())
	must(t, err)
	plain, _, _ := strings.Cut(strings.TrimPrefix(version.GetVersion(), "v"), "+")
	dir := filepath.Join("testdata", plain)
	must(t, os.RemoveAll(dir))
	save(t, dir, "version", version)

	plugins, err := c.introspection.Plugins(ctx, &introspection.PluginsRequest{})
	must(t, err)
	save(t, dir, "plugins", plugins)
	all, err := c.containers.List(ctx, &containers.ListContainersRequest{})
	must(t, err)
	for _, container := range all.GetContainers() {
		container.Spec = nil // long, and not asked for
	}
	save(t, dir, "containers", all)
	pods, err := c.sandboxes.List(ctx, &sandboxes.StoreListRequest{})
	must(t, err)
	save(t, dir, "sandboxes", pods)
	named, err := c.images.List(ctx, &images.ListImagesRequest{})
	must(t, err)
	save(t, dir, "images", named)
	for _, image := range named.GetImages() {
		if isDigest(image.GetName()) {
			blob, err := c.read(ctx, &content.ReadContentRequest{Digest: image.GetName(), Size: maxConfig})
			must(t, err)
			write(t, filepath.Join(dir, "blobs", strings.TrimPrefix(image.GetName(), "sha256:")), *blob)
		}
	}
	recordSnapshots(t, c, dir)
}

// recordSnapshots writes down the overlay snapshots, and the mounts of active ones.
func recordSnapshots(t *testing.T, c *Client, dir string) {
	t.Helper()
	ctx, cancel := c.bound(t.Context())
	defer cancel()
	stream, err := c.snapshots.List(ctx, &snapshots.ListSnapshotsRequest{Snapshotter: "overlayfs"})
	must(t, err)
	var all snapshots.ListSnapshotsResponse
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		all.Info = append(all.Info, part.GetInfo()...)
	}
	save(t, dir, "snapshots", &all)
	for _, s := range all.GetInfo() {
		if s.GetKind() == snapshots.Kind_ACTIVE {
			m, err := c.snapshots.Mounts(ctx, &snapshots.MountsRequest{Snapshotter: "overlayfs", Key: s.GetName()})
			must(t, err)
			save(t, dir, filepath.Join("mounts", s.GetName()), m)
		}
	}
}

// save writes a message down as text.
func save(t *testing.T, dir, name string, m proto.Message) {
	t.Helper()
	text, err := prototext.MarshalOptions{Multiline: true, Indent: "  "}.Marshal(m)
	must(t, err)
	write(t, filepath.Join(dir, name+".txtpb"), text)
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, data, 0o644))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
