package guard

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/tenant"
)

// oneLayer is a containerd whose every container is made of one layer.
type oneLayer struct {
	dir, diff string
	mu        sync.Mutex
	asked     []string // ids of containers
}

func (o *oneLayer) Snapshot(_ context.Context, container string) (layer.ContainerdSnapshot, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, container)
	return layer.ContainerdSnapshot{Snapshotter: "overlayfs", Key: container, Config: "sha256:of the image"}, nil
}

func (o *oneLayer) Mounts(context.Context, string, string) ([]layer.ContainerdMount, error) {
	return []layer.ContainerdMount{{Type: "overlay", Options: []string{"lowerdir=" + o.dir}}}, nil
}

func (o *oneLayer) Parent(_ context.Context, _, key string) (string, error) {
	if key == o.diff {
		return "", nil
	}
	return o.diff, nil // a chain of one
}

func (o *oneLayer) DiffIDs(context.Context, string) ([]string, error) { return []string{o.diff}, nil }

// TestKernelContainerdLayers: containerd is asked about the layers of its own
// containers, and not about those of others, which could have the same id.
func TestKernelContainerdLayers(t *testing.T) {
	all := sharing(t, 3, samples())
	client := &oneLayer{dir: all[0].Lower, diff: "sha256:" + strings.Repeat("1", 64)}
	r, _ := memoryRig(t, tenant.MarkOff, func(m *Memory) { m.Containerd = layer.NewContainerd(m.Host, client) })
	for i, runtime := range []announce.Runtime{announce.Containerd, announce.CRIO, ""} {
		digest := ""
		if runtime == announce.Containerd {
			digest = client.diff
		}
		g := r.announced(t, all[i], func(a *announce.Container) { a.Runtime = runtime })
		layers := r.container(t, g.ID).lineage.Load().rootfs.Layers()
		if len(layers) != 1 || layers[0].Digest != digest {
			t.Errorf("runtime %q: %+v, want %q", runtime, layers, digest)
		}
	}
	if want := fmt.Sprint([]string{announcement(all[0]).ID}); fmt.Sprint(client.asked) != want {
		t.Errorf("containerd was asked about %q, want %q", client.asked, want)
	}
}
