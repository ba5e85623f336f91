package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/grpc"
)

// maxListed bounds the containers that a probe counts. A node has some hundreds.
const maxListed = 20_000

// A Report is what containerd says of itself.
type Report struct {
	Version string
	// Kubernetes says that its service for Kubernetes (CRI) has been started.
	Kubernetes bool
	// NRI says that its plugin interface was started. Whether it is also enabled,
	// containerd does not tell: only then it listens at its socket.
	NRI bool
	// Snapshotters are those that can be used.
	Snapshotters []string
	// InUse counts the containers of Kubernetes' in the namespace, the pods' own
	// included, by their snapshotter.
	InUse map[string]int
}

// Probe asks containerd what it is. Errors wrap [ErrUnreachable] or [ErrHangs] where that
// is so.
func (c *Client) Probe(ctx context.Context) (Report, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	version, err := ask(ctx, c, c.versions.Version, nothing())
	if err != nil {
		return Report{}, fmt.Errorf("version: %w", err)
	}
	r := Report{Version: version.GetVersion()}
	plugins, err := ask(ctx, c, c.introspection.Plugins, &introspection.PluginsRequest{})
	if err != nil {
		return r, fmt.Errorf("plugins: %w", err)
	}
	for _, p := range plugins.GetPlugins() {
		if p.GetInitErr() == nil {
			r.note(p)
		}
	}
	inUse, err := ask(ctx, c, c.inUse, &containers.ListContainersRequest{Filters: []string{`labels."io.cri-containerd.kind"`}})
	if err != nil {
		return r, fmt.Errorf("containers in namespace %s: %w", c.o.Namespace, err)
	}
	r.InUse = *inUse
	return r, nil
}

// note takes down what one plugin of containerd's means.
func (r *Report) note(p *introspection.Plugin) {
	switch p.GetType() {
	case "io.containerd.grpc.v1":
		r.Kubernetes = r.Kubernetes || p.GetID() == "cri"
	case "io.containerd.nri.v1":
		r.NRI = true
	case "io.containerd.snapshotter.v1":
		if !slices.Contains(r.Snapshotters, p.GetID()) {
			r.Snapshotters = append(r.Snapshotters, p.GetID())
		}
	}
}

// inUse counts containers by their snapshotter.
func (c *Client) inUse(ctx context.Context, q *containers.ListContainersRequest, o ...grpc.CallOption) (*map[string]int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that is not read to its end
	stream, err := c.containers.ListStream(ctx, q, o...)
	if err != nil {
		return nil, err
	}
	inUse := map[string]int{}
	for range maxListed {
		next, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &inUse, nil
		}
		if err != nil {
			return nil, err
		}
		inUse[next.GetContainer().GetSnapshotter()]++
	}
	return nil, fmt.Errorf("there are more than %d", maxListed)
}
