// Package containerd asks one containerd, over its socket, what it knows of a
// container of its Kubernetes service (CRI): whose it is, what its image is, and
// where its layers are. It changes nothing there.
//
// In files:
//
//	client.go       the connection: bounds, reconnecting, what errors say
//	describe.go     container id -> whose it is
//	metadata.go     what the Kubernetes service stores with a container
//	layers.go       what internal/layer asks (layer.ContainerdClient)
//	image.go        an image's digest, its configuration and its layers' digests
//	probe.go        what internal/doctor asks
//	snapshotters.go which snapshotters' containers can be guarded
//
// It owns the questions, how long an answer may take, and what of an answer can be
// believed. It must not own decisions: whose policy a container gets is
// internal/guard's matter, which directory is which layer internal/layer's.
//
// Rules:
//
//   - Identity comes from the records that the Kubernetes service keeps for itself
//     (extensions), never from labels: a container's labels begin with those of its
//     image, so that whoever makes the image chooses them.
//   - Every answer is bounded, in time and in size. Containers wait while it is asked.
//   - Content is believed when its digest was computed here.
package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	versions "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Where containerd is, unless it is configured otherwise, and the namespace in which
// its Kubernetes service keeps containers.
const (
	DefaultSocket    = "/run/containerd/containerd.sock"
	DefaultNamespace = "k8s.io"
)

// DefaultPatience is how long one question may take.
const DefaultPatience = 2 * time.Second

// maxMessage bounds one message of containerd, in bytes. It is containerd's own bound.
const maxMessage = 16 << 20

// Errors of all questions.
var (
	// ErrUnknown says that containerd has no container of this id in the namespace.
	ErrUnknown = errors.New("containerd knows no such container")
	// ErrUnreachable says that nobody answers at the socket.
	ErrUnreachable = errors.New("containerd cannot be reached")
	// ErrHangs says that an answer did not come in time.
	ErrHangs = errors.New("containerd does not answer in time")
)

// errNotFound says that containerd does not have what was asked for.
var errNotFound = errors.New("not found")

// Options say which containerd to ask. What is left out is the default.
type Options struct {
	Socket    string        // path of its socket; "" is [DefaultSocket]
	Namespace string        // whose containers; "" is [DefaultNamespace]
	Patience  time.Duration // how long one question may take; 0 is [DefaultPatience]
}

// A Client asks one containerd. It connects when it is first asked, and again whenever
// containerd was restarted. It may be used by several goroutines.
type Client struct {
	o    Options
	conn *grpc.ClientConn

	containers    containers.ContainersClient
	content       content.ContentClient
	images        images.ImagesClient
	introspection introspection.IntrospectionClient
	sandboxes     sandboxes.StoreClient
	snapshots     snapshots.SnapshotsClient
	versions      versions.VersionClient

	mu    sync.Mutex
	diffs map[string][]string // the layers of images, by the digest of their configuration
}

// New returns a client. It does not connect yet. Close it.
func New(o Options) (*Client, error) {
	c := &Client{o: o.complete(), diffs: map[string][]string{}}
	// The target only names the connection: the dialer knows where to.
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a socket that only root may use
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 20 * time.Second, // so that whoever asks runs out of patience first, and says so
		}))
	if err != nil {
		return nil, fmt.Errorf("client of containerd: %w", err)
	}
	c.conn = conn
	c.containers = containers.NewContainersClient(conn)
	c.content = content.NewContentClient(conn)
	c.images = images.NewImagesClient(conn)
	c.introspection = introspection.NewIntrospectionClient(conn)
	c.sandboxes = sandboxes.NewStoreClient(conn)
	c.snapshots = snapshots.NewSnapshotsClient(conn)
	c.versions = versions.NewVersionClient(conn)
	return c, nil
}

// complete fills in the defaults.
func (o Options) complete() Options {
	return Options{
		Socket: cmp.Or(o.Socket, DefaultSocket), Namespace: cmp.Or(o.Namespace, DefaultNamespace),
		Patience: cmp.Or(o.Patience, DefaultPatience),
	}
}

// Close ends the connection. Questions under way fail.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("client of containerd: %w", err)
	}
	return nil
}

// bound is the context of one question: of the client's namespace, and no longer than
// its patience.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.o.Namespace)
	return context.WithTimeoutCause(ctx, c.o.Patience, ErrHangs)
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.o.Socket)
}

// ask calls one method of containerd's.
func ask[Q, R any](ctx context.Context, c *Client, method func(context.Context, *Q, ...grpc.CallOption) (*R, error), q *Q) (*R, error) {
	r, err := method(ctx, q)
	if status.Code(err) == codes.Unavailable {
		// That can be old news: grpc waits between its attempts to connect, and the
		// containerd that starts a container now has perhaps just been restarted.
		if err := c.reach(ctx); err != nil {
			return nil, err
		}
		r, err = method(ctx, q, grpc.WaitForReady(true))
	}
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return r, nil
}

// reach connects anew if somebody listens at the socket, and says why if nobody does.
func (c *Client) reach(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w; start containerd, or name its socket in the configuration (containerd.socket)", ErrUnreachable, err)
	}
	c.conn.ResetConnectBackoff()
	_ = conn.Close() // nothing was written
	return nil
}

// explain says what an error of a call means, and what to do about it.
func (c *Client) explain(ctx context.Context, err error) error {
	switch st := status.Convert(err); {
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrHangs):
		return fmt.Errorf("containerd at %s: %w", c.o.Socket, context.Cause(ctx))
	case ctx.Err() != nil, st.Code() == codes.DeadlineExceeded: // containerd is told the deadline, and may notice it first
		return fmt.Errorf("%w: nothing from %s within %s; see what it is doing (journalctl -u containerd)", ErrHangs, c.o.Socket, c.o.Patience)
	case st.Code() == codes.NotFound:
		return fmt.Errorf("containerd at %s: %w: %s", c.o.Socket, errNotFound, st.Message())
	case st.Code() == codes.Unavailable:
		return fmt.Errorf("%w at %s: %s; start containerd", ErrUnreachable, c.o.Socket, st.Message())
	default:
		return fmt.Errorf("containerd at %s: %s (%s)", c.o.Socket, st.Message(), st.Code())
	}
}

// nothing is the request of the methods that ask for nothing in particular.
func nothing() *emptypb.Empty { return &emptypb.Empty{} }
