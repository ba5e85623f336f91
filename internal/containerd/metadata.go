package containerd

import (
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"
)

// Where the Kubernetes service keeps what it was told (internal/cri/labels and
// internal/cri/server/podsandbox of containerd 2, pkg/cri of 1.7).
const (
	containerExtension = "io.cri-containerd.container.metadata" // of a container
	sandboxExtension   = "io.cri-containerd.sandbox.metadata"   // of the container that is a pod's own
	storedExtension    = "metadata"                             // of a sandbox in the store of sandboxes
)

// maxMetadata bounds what is stored with one container, in bytes. A pod's annotations
// alone may have 256 KiB.
const maxMetadata = 4 << 20

// A containerMetadata is what is needed of type Metadata in internal/cri/store/container.
type containerMetadata struct {
	ID          string
	SandboxID   string
	ImageRef    string // digest of the image's configuration
	ImageDigest string // of its manifest or index; since containerd 2.4
	Config      struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Image struct {
			Image string `json:"image"`
			Asked string `json:"user_specified_image"`
		} `json:"image"`
	}
}

// A sandboxMetadata is what is needed of type Metadata in internal/cri/store/sandbox.
type sandboxMetadata struct {
	ID     string
	Config struct {
		Metadata struct {
			Name      string `json:"name"`
			UID       string `json:"uid"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Labels map[string]string `json:"labels"`
	}
}

// check reports why the metadata are not those of the container id.
func (m *containerMetadata) check(id string) error {
	switch {
	case m.ID != id:
		return fmt.Errorf("they are of container %.80q", m.ID)
	case m.SandboxID == "":
		return errors.New("they name no pod")
	}
	return nil
}

// check reports why the metadata are not those of the sandbox id.
func (m *sandboxMetadata) check(id string) error {
	switch {
	case m.ID != id:
		return fmt.Errorf("they are of pod %.80q", m.ID)
	case m.Config.Metadata.Namespace == "":
		return errors.New("they name no namespace")
	}
	return nil
}

// decode reads what the Kubernetes service stored, and checks whose it is.
func decode[M any, P interface {
	*M
	check(id string) error
}](stored *anypb.Any, id string) (*M, error) {
	data := stored.GetValue()
	if len(data) > maxMetadata {
		return nil, fmt.Errorf("Kubernetes' metadata of %s: %d bytes, more than %d", id, len(data), maxMetadata) //nolint:staticcheck // a name
	}
	var versioned struct {
		Version  string
		Metadata M
	}
	err := json.Unmarshal(data, &versioned)
	if err == nil && versioned.Version != "v1" {
		err = fmt.Errorf("version %.20q is not known: this version of the agent is too old for this containerd", versioned.Version)
	}
	if err == nil {
		err = P(&versioned.Metadata).check(id)
	}
	if err != nil {
		return nil, fmt.Errorf("Kubernetes' metadata of %s: %w", id, err) //nolint:staticcheck // a name
	}
	return &versioned.Metadata, nil
}
