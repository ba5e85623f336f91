package containerd

import (
	"maps"
	"slices"
	"strings"
	"testing"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// TestProbe: what the recorded containerds were.
func TestProbe(t *testing.T) {
	for _, version := range recorded(t) {
		t.Run(version, func(t *testing.T) {
			s := loadState(t, version)
			container, pod := s.ids(t)
			s.containers[pod].Snapshotter = "native"
			s.containers["more"] = s.containers[container]
			r, err := playing(t, s).Probe(t.Context())
			must(t, err)
			slices.Sort(r.Snapshotters)
			// blockfile, which is not set up, cannot be used.
			if !strings.HasPrefix(r.Version, "2.") || !r.Kubernetes || !r.NRI ||
				!slices.Equal(r.Snapshotters, []string{"erofs", "native", "overlayfs"}) ||
				!maps.Equal(r.InUse, map[string]int{"native": 1, "overlayfs": 2}) { // and nothing of ctr's
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestProbeWithout: a plugin that did not start is not there.
func TestProbeWithout(t *testing.T) {
	for _, version := range recorded(t) {
		t.Run(version, func(t *testing.T) {
			s := loadState(t, version)
			for _, p := range s.plugins.GetPlugins() {
				p.InitErr = &status.Status{Code: 2, Message: "no"}
			}
			s.plugins.Plugins = append(s.plugins.Plugins, &introspection.Plugin{Type: "io.containerd.grpc.v1", ID: "tasks"})
			r, err := playing(t, s).Probe(t.Context())
			must(t, err)
			if r.Kubernetes || r.NRI || len(r.Snapshotters) != 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestFitOf: a snapshotter that nobody has heard of is not called fit.
func TestFitOf(t *testing.T) {
	for name, want := range map[string]Fit{"overlayfs": Full, "erofs": Coarse, "devmapper": Refused, "fuse-overlayfs": Refused, "": Unproven, "new": Unproven} {
		if fit, why := FitOf(name); fit != want || (why == "") != (fit == Full) {
			t.Errorf("%q: %d, %q", name, fit, why)
		}
	}
}
