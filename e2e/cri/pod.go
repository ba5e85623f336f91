package cri

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/assay-project/assay/e2e/harness"
)

// A PodSpec is the pod that a test wants. The zero value is one of the namespace default.
type PodSpec struct {
	Namespace   string // default
	Name        string // one that no other pod of the node has
	Labels      map[string]string
	Annotations map[string]string
}

// A Pod is a pod sandbox, in the network of the host.
type Pod struct {
	ID        string // of the sandbox
	Namespace string
	Name      string

	node   *Node
	config *cri.PodSandboxConfig
	serial int // of containers
}

// RunPod starts a pod that has to start. It ends with the node.
func (n *Node) RunPod(tb testing.TB, s PodSpec) *Pod {
	tb.Helper()
	p, err := n.TryPod(tb, s)
	if err != nil {
		tb.Fatalf("run pod: %v", err)
	}
	return p
}

// TryPod starts a pod, or says what containerd said.
func (n *Node) TryPod(tb testing.TB, s PodSpec) (*Pod, error) {
	tb.Helper()
	n.serial++
	p := &Pod{Namespace: s.Namespace, Name: s.Name, node: n}
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.Name == "" {
		p.Name = fmt.Sprintf("pod-%d", n.serial)
	}
	uid := fmt.Sprintf("uid-%d", n.serial)
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: uid},
		LogDirectory: filepath.Join(n.dir, "logs", uid),
		Labels:       labels(s.Labels, p, uid),
		Annotations:  s.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: filepath.Join(n.cgroup(), uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	if err := os.MkdirAll(p.config.GetLogDirectory(), 0o755); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := call(tb)
	defer cancel()
	r, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	p.ID = r.GetPodSandboxId()
	return p, err
}

// labels returns the labels that a pod, or one of its containers, has by the kubelet's
// account: those of its own, and then the kubelet's, whatever the pod has there.
func labels(own map[string]string, p *Pod, uid string) map[string]string {
	all := maps.Clone(own)
	if all == nil {
		all = map[string]string{}
	}
	all["io.kubernetes.pod.name"], all["io.kubernetes.pod.namespace"], all["io.kubernetes.pod.uid"] = p.Name, p.Namespace, uid
	return all
}

// Engine returns what starts containers in this pod for a load ([fault.Load]).
func (p *Pod) Engine() harness.Engine { return engine{p} }

// An engine is a pod in which package harness's specifications run. Its containers have
// no gate but the node's.
type engine struct{ pod *Pod }

func (e engine) Name() string { return "containerd" }

func (e engine) Run(tb testing.TB, s harness.Spec) harness.Result {
	tb.Helper()
	return e.pod.Run(tb, fromHarness(s))
}

func (e engine) Start(tb testing.TB, s harness.Spec) harness.Container {
	tb.Helper()
	return e.pod.Start(tb, fromHarness(s))
}

func fromHarness(s harness.Spec) Spec {
	spec := Spec{Args: s.Args}
	for _, b := range s.Binds {
		spec.Mounts = append(spec.Mounts, Mount{Source: b.Source, Destination: b.Destination})
	}
	return spec
}

// Remove stops and removes the pod with its containers.
func (p *Pod) Remove(tb testing.TB) {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	if err := p.node.removePod(ctx, p.ID); err != nil {
		tb.Errorf("remove pod %s: %v", p.Name, err)
	}
}

func (n *Node) removePod(ctx context.Context, id string) error {
	if _, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	_, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// Run runs a container in the pod to its end: an init container, as the kubelet runs
// them, or a job. The container is removed. It has to start.
func (p *Pod) Run(tb testing.TB, s Spec) harness.Result {
	tb.Helper()
	c := p.Start(tb, s)
	r := c.Wait(tb)
	c.Remove(tb)
	return r
}

// Start creates and starts a container that has to start.
func (p *Pod) Start(tb testing.TB, s Spec) *Container {
	tb.Helper()
	c, err := p.Try(tb, s)
	if err != nil {
		tb.Fatalf("start container: %v", err)
	}
	return c
}

// Try creates and starts a container, or says what containerd said. The container is
// not nil if it was created.
func (p *Pod) Try(tb testing.TB, s Spec) (*Container, error) {
	tb.Helper()
	c, err := p.Create(tb, s)
	if err != nil {
		return nil, err
	}
	return c, c.TryStart(tb)
}
