package hook

import (
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/assay-project/assay/internal/announce"
)

// As containerd 2.2.9 writes them for a container whose pod has tried to forge
// what a pod can name: pod_annotations = ["*"].
func containerdAnnotations() map[string]string {
	return map[string]string{
		"io.kubernetes.cri.container-name":    "app",
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.image-name":        "registry/app:1",
		"io.kubernetes.cri.sandbox-id":        "b0c1",
		"io.kubernetes.cri.sandbox-name":      "app-0",
		"io.kubernetes.cri.sandbox-namespace": "payments",
		"io.kubernetes.cri.sandbox-uid":       "u-1",
		"io.kubernetes.pod.namespace":         "assay-system",
		"io.kubernetes.container.name":        "POD",
		"io.kubernetes.cri-o.Namespace":       "assay-system",
	}
}

// As CRI-O 1.37 writes them for a container, likewise.
func crioAnnotations() map[string]string {
	return map[string]string{
		"io.kubernetes.container.name":        "app",
		"io.kubernetes.cri-o.ImageName":       "registry/app:1",
		"io.kubernetes.pod.name":              "app-0",
		"io.kubernetes.pod.namespace":         "payments",
		"io.kubernetes.pod.uid":               "u-1",
		"io.kubernetes.cri-o.ContainerType":   "sandbox",
		"io.kubernetes.cri-o.Namespace":       "assay-system",
		"io.kubernetes.cri.sandbox-namespace": "assay-system",
		"io.kubernetes.cri.container-type":    "sandbox",
	}
}

func TestIdentify(t *testing.T) {
	for r, annotations := range map[announce.Runtime]map[string]string{
		announce.Containerd: containerdAnnotations(), announce.CRIO: crioAnnotations(),
	} {
		state := &specs.State{ID: "c1", Pid: 7, Bundle: bundle(t, "rootfs"), Annotations: annotations}
		c, err := announcement(state, &Options{Stage: CreateRuntime, Runtime: r})
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		c.Labels, c.Bundle, c.Rootfs, c.PID = nil, "", "", 0
		want := announce.Container{
			ID: "c1", Namespace: "payments", Runtime: r, Name: "app", Pod: "app-0", PodUID: "u-1",
			Image: "registry/app:1", Source: "hook:createRuntime",
		}
		if got, want := encode(t, &c), encode(t, &want); got != want {
			t.Errorf("%s: got\n%s, want\n%s", r, got, want)
		}
	}
}

func TestIdentifySandbox(t *testing.T) {
	for r, change := range map[announce.Runtime]map[string]string{
		announce.Containerd: {"io.kubernetes.cri.container-type": "sandbox"},
		announce.CRIO:       {"io.kubernetes.container.name": "POD"},
	} {
		annotations := map[announce.Runtime]map[string]string{
			announce.Containerd: containerdAnnotations(), announce.CRIO: crioAnnotations(),
		}[r]
		maps.Copy(annotations, change)
		c := new(announce.Container)
		if err := identify(c, r, annotations); err != nil || !c.Sandbox {
			t.Errorf("%s: %+v, %v", r, c, err)
		}
	}
}

// Who is not told whose a container is does not guess.
func TestIdentifyRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		runtime announce.Runtime
		text    string
		change  map[string]string
	}{
		{"namespace", announce.Containerd, "no annotation io.kubernetes.cri.sandbox-namespace, which containerd gives", map[string]string{"io.kubernetes.cri.sandbox-namespace": ""}},
		{"kind", announce.Containerd, "no annotation io.kubernetes.cri.container-type", map[string]string{"io.kubernetes.cri.container-type": ""}},
		{"cri-o namespace", announce.CRIO, "no annotation io.kubernetes.pod.namespace, which cri-o gives", map[string]string{"io.kubernetes.pod.namespace": ""}},
		{"cri-o kind", announce.CRIO, "no annotation io.kubernetes.container.name", map[string]string{"io.kubernetes.container.name": ""}},
		{"unknown runtime", "docker", "unknown runtime", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			annotations := containerdAnnotations()
			if tt.runtime == announce.CRIO {
				annotations = crioAnnotations()
			}
			maps.Copy(annotations, tt.change)
			c := new(announce.Container)
			if err := identify(c, tt.runtime, annotations); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want ErrState with %q", err, tt.text)
			}
			if c.Namespace != "" || c.Runtime != "" {
				t.Errorf("got %+v", c)
			}
		})
	}
}

func TestParseRuntime(t *testing.T) {
	for _, name := range []string{"containerd", "cri-o"} {
		if r, err := ParseRuntime(name); err != nil || string(r) != name {
			t.Errorf("%s: %q, %v", name, r, err)
		}
	}
	for _, name := range []string{"", "docker", "Containerd"} {
		if _, err := ParseRuntime(name); !errors.Is(err, ErrRuntime) || !strings.Contains(err.Error(), "use containerd or cri-o") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Only while the agent is missing, and without a wait.
func TestSendExcused(t *testing.T) {
	member := &announce.Container{ID: "c1", PID: 7, Rootfs: "/r", Namespace: "assay-system", Labels: map[string]string{"a": "b"}}
	sandbox := &announce.Container{ID: "c1", PID: 7, Rootfs: "/r", Namespace: "web", Sandbox: true, Labels: map[string]string{"a": "b"}}
	other := &announce.Container{ID: "c1", PID: 7, Rootfs: "/r", Namespace: "assay-system-2", Labels: map[string]string{"a": "b"}}
	bye := response("503 Service Unavailable", stopping)
	for name, tt := range map[string]struct {
		c       *announce.Container
		runtime announce.Runtime
		wait    bool
		reply   string // "none" is no agent
		is, not error
		text    string
	}{
		"no agent":          {member, announce.Containerd, true, "none", ErrWithoutAgent, nil, "namespace assay-system is exempt"},
		"stopping":          {member, announce.CRIO, true, bye, ErrWithoutAgent, nil, "namespace assay-system is exempt"},
		"sandbox":           {sandbox, announce.Containerd, true, "none", ErrWithoutAgent, nil, "a pod's sandbox"},
		"another namespace": {other, announce.Containerd, false, "none", ErrAgentMissing, ErrWithoutAgent, ""},
		"no runtime":        {member, "", false, "none", ErrAgentMissing, ErrWithoutAgent, ""},
		"refused":           {member, announce.Containerd, true, response("409 Conflict", `{"error":"no overlay"}`), nil, ErrWithoutAgent, "no overlay"},
		"half a reply":      {sandbox, announce.Containerd, true, "HTTP/1.1 200 OK\r\n", ErrReply, ErrWithoutAgent, ""},
		"hangs up":          {sandbox, announce.Containerd, false, "", ErrReply, ErrWithoutAgent, "hung up"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			if tt.reply != "none" {
				scripted(t, socket, tt.reply)
			}
			opts := &Options{Socket: socket, Timeout: generous, Runtime: tt.runtime, Exempt: []string{"assay-system"}}
			if tt.wait { // one that only a hanging test reaches
				opts.Wait = generous
			}
			err := send(tt.c, opts)
			if err == nil || (tt.is != nil && !errors.Is(err, tt.is)) || (tt.not != nil && errors.Is(err, tt.not)) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v and not %v", err, tt.is, tt.not)
			}
		})
	}
}

// An agent that was killed in the middle of it is missing the next time.
func TestSendExcusedAfterHangUp(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	asked := scripted(t, socket, "", response("503 Service Unavailable", stopping))
	c := container()
	c.Sandbox = true
	err := send(c, &Options{Socket: socket, Timeout: generous, Wait: generous, Runtime: announce.Containerd})
	if !errors.Is(err, ErrWithoutAgent) || asked.Load() != 2 {
		t.Fatalf("asked %d times, error %v", asked.Load(), err)
	}
}

func encode(t *testing.T, c *announce.Container) string {
	t.Helper()
	data, err := json.Marshal(c)
	must(t, err)
	return string(data)
}
