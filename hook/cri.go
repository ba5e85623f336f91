package hook

import (
	"errors"
	"fmt"
	"slices"

	"github.com/assay-project/assay/internal/announce"
)

// ErrRuntime is wrapped by every error of ParseRuntime.
var ErrRuntime = errors.New("unknown runtime")

// keys are the annotations by which a runtime's Kubernetes service tells an OCI
// runtime whose container it is. The first two decide something. So they have to be
// the service's own: written after whatever a pod or an image can name.
type keys struct {
	namespace             string
	kind, sandbox         string // what it is, and the value that says that it is a pod's sandbox
	name, pod, uid, image string // for records
}

// keysOf returns the keys of r, and false if it is not known.
func keysOf(r announce.Runtime) (keys, bool) {
	switch r {
	case announce.Containerd:
		// internal/cri/annotations, DefaultCRIAnnotations, appended after all that
		// pod_annotations and container_annotations let through (read in 1.7.35, 2.2.9, 2.4.2).
		return keys{
			namespace: "io.kubernetes.cri.sandbox-namespace",
			kind:      "io.kubernetes.cri.container-type", sandbox: "sandbox",
			name: "io.kubernetes.cri.container-name", pod: "io.kubernetes.cri.sandbox-name",
			uid: "io.kubernetes.cri.sandbox-uid", image: "io.kubernetes.cri.image-name",
		}, true
	case announce.CRIO:
		// The labels of the kubelet's request are what is written last (read in 1.37,
		// internal/factory/container, SpecAddAnnotations). Not io.kubernetes.cri-o.Namespace:
		// CRI-O writes it for sandboxes only, so that in a container's annotations it
		// would be the pod's. Not io.kubernetes.cri-o.ContainerType: the image of a
		// checkpoint can overwrite it.
		return keys{
			namespace: "io.kubernetes.pod.namespace",
			kind:      "io.kubernetes.container.name", sandbox: "POD", // no container is called so: their names have no capitals
			name: "io.kubernetes.container.name", pod: "io.kubernetes.pod.name",
			uid: "io.kubernetes.pod.uid", image: "io.kubernetes.cri-o.ImageName",
		}, true
	}
	return keys{}, false
}

// ParseRuntime returns the runtime with that name, or an error that wraps ErrRuntime.
func ParseRuntime(name string) (announce.Runtime, error) {
	r := announce.Runtime(name)
	if _, known := keysOf(r); !known {
		return "", fmt.Errorf("%w %q (use %s or %s)", ErrRuntime, name, announce.Containerd, announce.CRIO)
	}
	return r, nil
}

// identify takes whose container c is from what r's Kubernetes service has written
// into its annotations. Errors wrap ErrState.
func identify(c *announce.Container, r announce.Runtime, annotations map[string]string) error {
	k, known := keysOf(r)
	if !known {
		return fmt.Errorf("%w: %w %q", ErrState, ErrRuntime, r)
	}
	for _, key := range []string{k.namespace, k.kind} {
		if annotations[key] == "" {
			return fmt.Errorf("%w: no annotation %s, which %s gives every container of a pod (one that does not come from Kubernetes, "+
				"as with \"ctr run\" or podman, needs a hook without --runtime)", ErrState, key, r)
		}
	}
	c.Runtime, c.Namespace, c.Sandbox = r, annotations[k.namespace], annotations[k.kind] == k.sandbox
	c.Name, c.Pod = bounded(annotations[k.name]), bounded(annotations[k.pod])
	c.PodUID, c.Image = bounded(annotations[k.uid]), bounded(annotations[k.image])
	return nil
}

// excuse says why c may start without an agent that is missing, or "" if it may not.
func (o *Options) excuse(c *announce.Container) string {
	switch {
	case o.Runtime == "":
		return ""
	case c.Sandbox:
		// Its image is the platform's, and it runs nothing of the pod's. A pod's
		// containers come after it, so without it the agent's own pod could not start.
		return "because it is a pod's sandbox"
	case slices.Contains(o.Exempt, c.Namespace):
		return fmt.Sprintf("because namespace %s is exempt", c.Namespace)
	}
	return ""
}
