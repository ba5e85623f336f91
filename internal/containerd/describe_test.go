package containerd

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/protobuf/types/known/anypb"
)

// What was recorded: a pod with one container, whose image says that it is of the
// namespace kube-system; and a container that ctr run made of the same image.
const (
	pauseConfig   = "sha256:4b1e797a77d5b830414ecf7b4548a075a6dbe0e431b985c7881ad8fc18a1d780"
	pauseManifest = "sha256:a7d21c7b07ed6022431dcb1639c11d926078f2a63fa3b159e400c5d40a027a06"
	appConfig     = "sha256:4d55306c981e62796e79d4adf4bcaee042b0620d531b5c0fda5db50cb4faa522"
	appManifest   = "sha256:d06539e9adf0508fa1eba17d7fef72efbd8a48f0a599686ac6e301f7d3fc1c13"
	plain         = "plain"
)

// ids returns the recorded container of Kubernetes', and its pod.
func (s *state) ids(tb testing.TB) (container, pod string) {
	tb.Helper()
	for id, c := range s.containers {
		switch {
		case c.GetExtensions()[containerExtension] != nil:
			container = id
		case c.GetExtensions()[sandboxExtension] != nil:
			pod = id
		}
	}
	if container == "" || pod == "" || s.containers[plain] == nil {
		tb.Fatalf("a container is missing in the recording: %q, %q", container, pod)
	}
	return container, pod
}

// TestDescribe: a container and its pod are what Kubernetes said, whatever the labels
// of the image say.
func TestDescribe(t *testing.T) {
	for _, version := range recorded(t) {
		t.Run(version, func(t *testing.T) {
			s := loadState(t, version)
			container, pod := s.ids(t)
			if got := s.containers[container].GetLabels()["io.kubernetes.pod.namespace"]; got != "kube-system" {
				t.Fatalf("the image's label is %q", got)
			}
			c := playing(t, s)
			want := Description{
				ID: container, Namespace: "pay-eu", Pod: "web-0", PodUID: "uid-web-0",
				PodLabels: map[string]string{"app": "web-0", "tier": "pci"},
				Name:      "main", Image: "docker.io/library/asked:1", ImageDigest: appManifest, ConfigDigest: appConfig,
				Snapshotter: "overlayfs", SnapshotKey: container,
			}
			wantDescription(t, c, container, want)
			want.ID, want.SnapshotKey, want.Sandbox = pod, pod, true
			want.Name, want.Image, want.ImageDigest, want.ConfigDigest = "", "assay.test/pause:1", pauseManifest, pauseConfig
			wantDescription(t, c, pod, want)
		})
	}
}

func wantDescription(t *testing.T, c *Client, id string, want Description) {
	t.Helper()
	got, err := c.Describe(t.Context(), id)
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// TestDescribeOtherwise: what is not stored where it usually is, or is not there at all.
func TestDescribeOtherwise(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(s *state, container, pod string)
		want  func(d *Description)
	}{
		"the pod has no container": {func(s *state, _, pod string) { delete(s.containers, pod) }, func(*Description) {}},
		"the pod's container has no metadata": {
			func(s *state, _, pod string) { s.containers[pod].Extensions = nil },
			func(*Description) {},
		},
		"the tag is another image's by now": {
			func(s *state, _, _ string) { s.images["assay.test/app:1"].Target.Digest = pauseManifest },
			func(*Description) {},
		},
		"the image was removed": {
			func(s *state, container, _ string) {
				maps.DeleteFunc(s.images, func(name string, _ *images.Image) bool { return strings.Contains(name, "app") || name == appConfig })
				edit(s.containers[container], containerExtension, func(m map[string]any) { delete(m, "ImageDigest") })
			},
			func(d *Description) { d.ImageDigest = "" },
		},
		"no pod labels": {
			func(s *state, _, pod string) {
				edit(s.containers[pod], sandboxExtension, func(m map[string]any) { delete(m["Config"].(map[string]any), "labels") }) //nolint:errcheck // it panics
			},
			func(d *Description) { d.PodLabels = map[string]string{} },
		},
		"an old kubelet": {
			func(s *state, container, _ string) {
				askFor(s.containers[container], map[string]any{"image": "docker.io/app:2"})
			},
			func(d *Description) { d.Image = "docker.io/app:2" },
		},
		"an old kubelet, by digest": {
			func(s *state, container, _ string) {
				askFor(s.containers[container], map[string]any{"image": appConfig})
			},
			func(d *Description) { d.Image = "assay.test/app:1" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, version := range recorded(t) {
				t.Run(version, func(t *testing.T) {
					s := loadState(t, version)
					container, pod := s.ids(t)
					want, err := playing(t, s).Describe(t.Context(), container)
					must(t, err)
					tt.spoil(s, container, pod)
					tt.want(&want)
					wantDescription(t, playing(t, s), container, want)
				})
			}
		})
	}
}

// TestDescribeRefuses: nobody's namespace is guessed.
func TestDescribeRefuses(t *testing.T) {
	odd := func(extension string, change func(m map[string]any)) func(s *state, container, pod string) {
		return func(s *state, container, pod string) {
			id := container
			if extension == sandboxExtension {
				id = pod
			}
			edit(s.containers[id], extension, change)
		}
	}
	for name, tt := range map[string]struct {
		spoil func(s *state, container, pod string)
		want  error
		words string
	}{
		"gone":            {func(s *state, c, _ string) { delete(s.containers, c) }, ErrUnknown, "containerd.namespace"},
		"not Kubernetes'": {func(s *state, c, _ string) { s.containers[c].Extensions = nil }, ErrNotKubernetes, "past Kubernetes"},
		"its pod is gone": {func(s *state, _, pod string) { delete(s.containers, pod); delete(s.sandboxes, pod) }, errNotFound, "pod "},
		"its pod is nowhere": {func(s *state, _, pod string) {
			delete(s.containers, pod)
			s.sandboxes[pod].Extensions = nil
		}, nil, "unexpected end of JSON"},
		"another container's":  {odd(containerExtension, func(m map[string]any) { m["ID"] = "other" }), nil, `they are of container "other"`},
		"another pod's":        {odd(sandboxExtension, func(m map[string]any) { m["ID"] = "other" }), nil, `they are of pod "other"`},
		"no pod":               {odd(containerExtension, func(m map[string]any) { delete(m, "SandboxID") }), nil, "name no pod"},
		"no namespace":         {odd(sandboxExtension, func(m map[string]any) { delete(m, "Config") }), nil, "name no namespace"},
		"namespace no string":  {odd(sandboxExtension, func(m map[string]any) { m["Config"] = map[string]any{"metadata": 7} }), nil, "cannot unmarshal"},
		"too long":             {odd(sandboxExtension, func(m map[string]any) { m["x"] = strings.Repeat("x", maxMetadata) }), nil, "bytes, more than"},
		"of another version":   {func(s *state, c, _ string) { set(s.containers[c], containerExtension, `{"Version":"v2"}`) }, nil, `version "v2" is not known`},
		"no JSON":              {func(s *state, c, _ string) { set(s.containers[c], containerExtension, `{`) }, nil, "unexpected end of JSON"},
		"nothing at all in it": {func(s *state, c, _ string) { set(s.containers[c], containerExtension, ``) }, nil, "unexpected end of JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			s := loadState(t, recorded(t)[0])
			container, pod := s.ids(t)
			tt.spoil(s, container, pod)
			d, err := playing(t, s).Describe(t.Context(), container)
			if err == nil {
				t.Fatalf("%+v", d)
			}
			if tt.want == nil {
				tt.want = err
			}
			wantError(t, err, tt.want, tt.words)
		})
	}
}

// TestNamespace: a client asks in its namespace, and in no other.
func TestNamespace(t *testing.T) {
	s := loadState(t, recorded(t)[0])
	container, _ := s.ids(t)
	socket := socketIn(t)
	s.serve(t, socket)
	_, err := client(t, Options{Socket: socket, Patience: patient, Namespace: "moby"}).Describe(t.Context(), container)
	wantError(t, err, ErrUnknown, "in namespace moby")
}

// edit changes what is in a container's metadata.
func edit(c *containers.Container, extension string, change func(m map[string]any)) {
	var versioned struct {
		Version  string
		Metadata map[string]any
	}
	if err := json.Unmarshal(c.GetExtensions()[extension].GetValue(), &versioned); err != nil {
		panic(err)
	}
	change(versioned.Metadata)
	text, err := json.Marshal(versioned)
	if err != nil {
		panic(err)
	}
	set(c, extension, string(text))
}

// set replaces a container's metadata.
func set(c *containers.Container, extension, text string) {
	c.Extensions[extension] = &anypb.Any{TypeUrl: c.GetExtensions()[extension].GetTypeUrl(), Value: []byte(text)}
}

// askFor replaces the image that Kubernetes asked for.
func askFor(c *containers.Container, image map[string]any) {
	edit(c, containerExtension, func(m map[string]any) { m["Config"].(map[string]any)["image"] = image }) //nolint:errcheck // it panics
}

func FuzzMetadata(f *testing.F) {
	for _, version := range recorded(f) {
		for _, c := range loadState(f, version).containers {
			for _, stored := range c.GetExtensions() {
				f.Add(stored.GetValue(), c.GetID())
			}
		}
	}
	f.Add([]byte(`{"Version":"v1","Metadata":{"ID":"x","SandboxID":"y","Config":{"metadata":{"namespace":"n"},"labels":null}}}`), "x")
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		stored := &anypb.Any{Value: data}
		if m, err := decode[containerMetadata](stored, id); err == nil && (m.ID != id || m.SandboxID == "") {
			t.Errorf("taken for %q's: %+v", id, m)
		}
		if m, err := decode[sandboxMetadata](stored, id); err == nil && (m.ID != id || m.Config.Metadata.Namespace == "") {
			t.Errorf("taken for %q's: %+v", id, m)
		}
	})
}
