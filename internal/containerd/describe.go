package containerd

import (
	"context"
	"errors"
	"fmt"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
)

// ErrNotKubernetes says that a container is containerd's, but was not made by its
// Kubernetes service: nothing says whose it is.
var ErrNotKubernetes = errors.New("not a container of Kubernetes' (CRI)")

// A Description is what containerd's Kubernetes service knows of a container.
type Description struct {
	ID      string
	Sandbox bool // it is a pod's own container, which holds its namespaces

	// Namespace, pod and labels are as Kubernetes told the service. The labels are
	// the pod's, and never nil.
	Namespace, Pod, PodUID string
	PodLabels              map[string]string

	Name  string // of the container in the pod; "" for the pod's own
	Image string // as it was asked for
	// ImageDigest is that of the image's manifest or index, ConfigDigest that of its
	// configuration; "" if containerd does not know. For a pod's own container they are
	// those that the image's name has now.
	ImageDigest, ConfigDigest string

	Snapshotter, SnapshotKey string // what holds its root filesystem
}

// Describe returns what containerd knows of a container, by its id. Errors wrap
// [ErrUnknown], [ErrNotKubernetes], [ErrUnreachable] or [ErrHangs] where that is so.
func (c *Client) Describe(ctx context.Context, id string) (Description, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	r, err := c.record(ctx, id)
	if err != nil {
		return Description{}, err
	}
	pod, err := c.pod(ctx, r)
	if err != nil {
		return Description{}, err
	}
	d := Description{
		ID: id, Sandbox: r.sandbox != nil,
		Namespace: pod.Config.Metadata.Namespace, Pod: pod.Config.Metadata.Name, PodUID: pod.Config.Metadata.UID,
		PodLabels: pod.Config.Labels, Image: r.image(),
		Snapshotter: r.GetSnapshotter(), SnapshotKey: r.GetSnapshotKey(),
	}
	if d.PodLabels == nil {
		d.PodLabels = map[string]string{}
	}
	if r.container != nil {
		d.Name = r.container.Config.Metadata.Name
	}
	// Only records name the image: a container need not wait for that, or fail.
	d.ConfigDigest, _ = c.config(ctx, r)
	d.ImageDigest, _ = c.manifest(ctx, r)
	return d, nil
}

// A record is what containerd has stored of a container of Kubernetes': either
// container or sandbox is set.
type record struct {
	*containers.Container
	container *containerMetadata
	sandbox   *sandboxMetadata
}

// record asks for a container.
func (c *Client) record(ctx context.Context, id string) (*record, error) {
	got, err := ask(ctx, c, c.containers.Get, &containers.GetContainerRequest{ID: id})
	if errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("%w: %.80q in namespace %s at %s; name its namespace in the configuration (containerd.namespace) if it is another",
			ErrUnknown, id, c.o.Namespace, c.o.Socket)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	r := &record{Container: got.GetContainer()}
	extensions := r.GetExtensions()
	switch {
	case extensions[containerExtension] != nil:
		r.container, err = decode[containerMetadata](extensions[containerExtension], id)
	case extensions[sandboxExtension] != nil:
		r.sandbox, err = decode[sandboxMetadata](extensions[sandboxExtension], id)
	default:
		err = fmt.Errorf("container %s: %w; it was started past Kubernetes, as ctr and nerdctl do", id, ErrNotKubernetes)
	}
	return r, err
}

// pod returns what is stored of the container's pod.
func (c *Client) pod(ctx context.Context, r *record) (*sandboxMetadata, error) {
	if r.sandbox != nil {
		return r.sandbox, nil
	}
	id := r.container.SandboxID
	own, err := ask(ctx, c, c.containers.Get, &containers.GetContainerRequest{ID: id})
	if err == nil && own.GetContainer().GetExtensions()[sandboxExtension] != nil {
		return decode[sandboxMetadata](own.GetContainer().GetExtensions()[sandboxExtension], id)
	}
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("pod %s of container %s: %w", id, r.GetID(), err)
	}
	// Pods of other sandboxers than containerd's own have no container.
	stored, err := ask(ctx, c, c.sandboxes.Get, &sandboxes.StoreGetRequest{SandboxID: id})
	if err != nil {
		return nil, fmt.Errorf("pod %s of container %s: %w", id, r.GetID(), err)
	}
	return decode[sandboxMetadata](stored.GetSandbox().GetExtensions()[storedExtension], id)
}

// image is the reference by which the container's image was asked for. The kubelet
// resolves it, and then asks by the digest of the configuration.
func (r *record) image() string {
	if r.container != nil {
		asked := r.container.Config.Image
		if asked.Asked != "" {
			return asked.Asked
		}
		if asked.Image != "" && !isDigest(asked.Image) {
			return asked.Image
		}
	}
	return r.GetImage()
}
