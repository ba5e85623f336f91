package hook

import (
	"strings"

	"github.com/assay-project/assay/internal/announce"
)

// maxLabel bounds one annotation's value in the announcement, in bytes.
const maxLabel = 512

// describe names the container in records after the well-known annotations of
// containerd's and CRI-O's Kubernetes services and of the OCI image
// specification. An image or its owner can set some of these, so nothing is
// decided by them; the namespace stays a label for the same reason. What identify
// takes is what one runtime is known to write itself.
func describe(c *announce.Container, annotations map[string]string) {
	label := func(key string) string {
		value := annotations[key]
		if value == "" {
			return ""
		}
		value = bounded(value)
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels[key] = value
		return value
	}
	first := func(keys ...string) (found string) {
		for _, key := range keys {
			if value := label(key); found == "" {
				found = value
			}
		}
		return found
	}
	c.Name = first("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "io.kubernetes.cri-o.ContainerName")
	c.Pod = first("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName")
	c.Image = first("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "org.opencontainers.image.ref.name")
	first("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace", "io.kubernetes.cri-o.Namespace")
}

// bounded returns value cut to at most maxLabel bytes, and to valid UTF-8.
func bounded(value string) string {
	return strings.ToValidUTF8(value[:min(len(value), maxLabel)], "")
}
