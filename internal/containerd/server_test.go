package containerd

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	versions "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A state is what a containerd has, as it was recorded from a real one. It answers as
// that did.
type state struct {
	version    *versions.VersionResponse
	plugins    *introspection.PluginsResponse
	containers map[string]*containers.Container
	sandboxes  map[string]*types.Sandbox
	images     map[string]*images.Image
	snapshots  map[string]*snapshots.Info
	mounts     map[string]*snapshots.MountsResponse
	blobs      map[string][]byte // by digest
	reads      atomic.Int32      // of blobs
	hang       atomic.Bool       // no call is answered
}

// loadState reads a recording.
func loadState(tb testing.TB, version string) *state {
	tb.Helper()
	dir := filepath.Join("testdata", version)
	s := &state{
		version: &versions.VersionResponse{}, plugins: &introspection.PluginsResponse{},
		containers: map[string]*containers.Container{}, sandboxes: map[string]*types.Sandbox{}, images: map[string]*images.Image{},
		snapshots: map[string]*snapshots.Info{}, mounts: map[string]*snapshots.MountsResponse{}, blobs: map[string][]byte{},
	}
	load(tb, filepath.Join(dir, "version.txtpb"), s.version)
	load(tb, filepath.Join(dir, "plugins.txtpb"), s.plugins)
	for _, c := range load(tb, filepath.Join(dir, "containers.txtpb"), &containers.ListContainersResponse{}).GetContainers() {
		s.containers[c.GetID()] = c
	}
	for _, p := range load(tb, filepath.Join(dir, "sandboxes.txtpb"), &sandboxes.StoreListResponse{}).GetList() {
		s.sandboxes[p.GetSandboxID()] = p
	}
	for _, i := range load(tb, filepath.Join(dir, "images.txtpb"), &images.ListImagesResponse{}).GetImages() {
		s.images[i.GetName()] = i
	}
	for _, i := range load(tb, filepath.Join(dir, "snapshots.txtpb"), &snapshots.ListSnapshotsResponse{}).GetInfo() {
		s.snapshots[i.GetName()] = i
	}
	for _, name := range glob(tb, filepath.Join(dir, "mounts", "*")) {
		s.mounts[strings.TrimSuffix(filepath.Base(name), ".txtpb")] = load(tb, name, &snapshots.MountsResponse{})
	}
	for _, name := range glob(tb, filepath.Join(dir, "blobs", "*")) {
		blob, err := os.ReadFile(name)
		must(tb, err)
		s.blobs["sha256:"+filepath.Base(name)] = blob
	}
	return s
}

func load[M proto.Message](tb testing.TB, name string, m M) M {
	tb.Helper()
	text, err := os.ReadFile(name)
	must(tb, err)
	must(tb, prototext.Unmarshal(text, m))
	return m
}

func glob(tb testing.TB, pattern string) []string {
	tb.Helper()
	names, err := filepath.Glob(pattern)
	must(tb, err)
	return names
}

// serve answers at a socket until stop is called, or the test ends.
func (s *state) serve(tb testing.TB, socket string) (stop func()) {
	tb.Helper()
	l, err := net.Listen("unix", socket)
	must(tb, err)
	server := grpc.NewServer(grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))
	containers.RegisterContainersServer(server, &containersService{state: s})
	sandboxes.RegisterStoreServer(server, &sandboxesService{state: s})
	images.RegisterImagesServer(server, &imagesService{state: s})
	snapshots.RegisterSnapshotsServer(server, &snapshotsService{state: s})
	content.RegisterContentServer(server, &contentService{state: s})
	versions.RegisterVersionServer(server, &versionService{state: s})
	introspection.RegisterIntrospectionServer(server, &introspectionService{state: s})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	tb.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return server.Stop
}

// admit holds calls back if the containerd hangs, and refuses other namespaces.
func (s *state) admit(ctx context.Context) error {
	if s.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("containerd-namespace"); len(got) != 1 || got[0] != "k8s.io" {
		return status.Errorf(codes.NotFound, "nothing in namespace %q", got)
	}
	return nil
}

func (s *state) unary(ctx context.Context, q any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return next(ctx, q)
}

func (s *state) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.admit(ss.Context()); err != nil {
		return err
	}
	return next(srv, ss)
}

// found returns what a map has, with containerd's error if it does not.
func found[V any](m map[string]V, kind, name string) (V, error) {
	v, ok := m[name]
	if !ok {
		return v, status.Errorf(codes.NotFound, "%s %q: not found", kind, name)
	}
	return v, nil
}

type containersService struct {
	containers.UnimplementedContainersServer
	*state
}

func (s *containersService) Get(_ context.Context, q *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	c, err := found(s.containers, "container", q.GetID())
	return &containers.GetContainerResponse{Container: c}, err
}

func (s *containersService) ListStream(q *containers.ListContainersRequest, out containers.Containers_ListStreamServer) error {
	if got := fmt.Sprint(q.GetFilters()); got != `[labels."io.cri-containerd.kind"]` {
		return status.Errorf(codes.Unimplemented, "filter %s", got)
	}
	for _, c := range s.containers {
		if c.GetLabels()["io.cri-containerd.kind"] == "" {
			continue
		}
		if err := out.Send(&containers.ListContainerMessage{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

type sandboxesService struct {
	sandboxes.UnimplementedStoreServer
	*state
}

func (s *sandboxesService) Get(_ context.Context, q *sandboxes.StoreGetRequest) (*sandboxes.StoreGetResponse, error) {
	p, err := found(s.sandboxes, "sandbox", q.GetSandboxID())
	return &sandboxes.StoreGetResponse{Sandbox: p}, err
}

type imagesService struct {
	images.UnimplementedImagesServer
	*state
}

func (s *imagesService) Get(_ context.Context, q *images.GetImageRequest) (*images.GetImageResponse, error) {
	i, err := found(s.images, "image", q.GetName())
	return &images.GetImageResponse{Image: i}, err
}

func (s *imagesService) List(_ context.Context, q *images.ListImagesRequest) (*images.ListImagesResponse, error) {
	digest, ok := strings.CutPrefix(strings.Join(q.GetFilters(), " "), "target.digest==")
	if !ok {
		return nil, status.Errorf(codes.Unimplemented, "filters %q", q.GetFilters())
	}
	r := &images.ListImagesResponse{}
	for _, i := range s.images {
		if i.GetTarget().GetDigest() == digest {
			r.Images = append(r.Images, i)
		}
	}
	return r, nil
}

type snapshotsService struct {
	snapshots.UnimplementedSnapshotsServer
	*state
}

func (s *snapshotsService) Mounts(_ context.Context, q *snapshots.MountsRequest) (*snapshots.MountsResponse, error) {
	return found(s.mounts, q.GetSnapshotter()+" snapshot", q.GetKey())
}

func (s *snapshotsService) Stat(_ context.Context, q *snapshots.StatSnapshotRequest) (*snapshots.StatSnapshotResponse, error) {
	i, err := found(s.snapshots, q.GetSnapshotter()+" snapshot", q.GetKey())
	return &snapshots.StatSnapshotResponse{Info: i}, err
}

type contentService struct {
	content.UnimplementedContentServer
	*state
}

// Read sends a blob in parts of 1 KiB.
func (s *contentService) Read(q *content.ReadContentRequest, out content.Content_ReadServer) error {
	s.reads.Add(1)
	blob, err := found(s.blobs, "content", q.GetDigest())
	if err != nil {
		return err
	}
	blob = blob[:min(int64(len(blob)), q.GetSize())]
	for len(blob) > 0 {
		n := min(len(blob), 1024)
		if err := out.Send(&content.ReadContentResponse{Data: blob[:n]}); err != nil {
			return err
		}
		blob = blob[n:]
	}
	return nil
}

type versionService struct {
	versions.UnimplementedVersionServer
	*state
}

func (s *versionService) Version(context.Context, *emptypb.Empty) (*versions.VersionResponse, error) {
	return s.version, nil
}

type introspectionService struct {
	introspection.UnimplementedIntrospectionServer
	*state
}

func (s *introspectionService) Plugins(context.Context, *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	return s.plugins, nil
}
