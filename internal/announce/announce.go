// Package announce is the message with which a runtime's hook or plugin tells
// the agent of a container, and the agent's reply. It owns the two types and
// their validation and nothing else, so that the hook stays small: it imports
// only the standard library. internal/guard acts on an announcement.
package announce

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// MaxBytes bounds an encoded announcement; a longer one is refused.
const MaxBytes = 1 << 20

// Path is where the agent's socket takes announcements (HTTP POST, JSON).
const Path = "/v1/containers"

// Stopping is the message of the [Refusal] of an agent that is about to end. It
// has judged nothing: whoever announces may ask its successor.
const Stopping = "the agent is stopping"

// A Runtime is who manages a container, where that is more than an OCI runtime: the
// agent can ask it whose container it is and what its layers are.
type Runtime string

// The runtimes that the agent knows to ask.
const (
	Containerd Runtime = "containerd" // through its Kubernetes service (CRI)
	CRIO       Runtime = "cri-o"
)

// A Container announces one container whose first process exists but has not
// yet executed anything of the container, unless Late says otherwise.
type Container struct {
	// ID is the runtime's container id.
	ID string `json:"id"`
	// PID is the container's first process in the agent's pid namespace.
	PID int `json:"pid"`
	// Bundle is the OCI bundle directory on the host; for messages only.
	Bundle string `json:"bundle,omitempty"`
	// Rootfs is the absolute path of the root filesystem in the mount namespace
	// of PID: the path from the bundle's config.json before the pivot, "/" after.
	Rootfs string `json:"rootfs"`
	// Namespace selects the tenant. It comes from the platform (the hook's
	// arguments, which root wrote, or the orchestrator), never from the container.
	Namespace string `json:"namespace,omitempty"`
	// PodLabels are the pod's, as the orchestrator told them and nobody else: a tenant's
	// choice may depend on those that the configuration trusts. nil is not told, empty
	// is none.
	PodLabels map[string]string `json:"podLabels,omitempty"`
	// Runtime is who manages the container; "" is not known.
	Runtime Runtime `json:"runtime,omitempty"`
	// Sandbox says that this is a pod's own container, which holds its namespaces.
	Sandbox bool `json:"sandbox,omitempty"`
	// Late says that the container has been running already: whatever it opened before
	// it is guarded was not scanned.
	Late bool `json:"late,omitempty"`
	// The rest names the container in records. Nothing is decided by it.
	Name        string            `json:"name,omitempty"`
	Pod         string            `json:"pod,omitempty"`
	PodUID      string            `json:"podUID,omitempty"`
	Image       string            `json:"image,omitempty"`       // as it was asked for
	ImageDigest string            `json:"imageDigest,omitempty"` // of its manifest or index
	Labels      map[string]string `json:"labels,omitempty"`      // untrusted
	// Source is who announced: "hook:createRuntime", "hook:prestart", "nri:StartContainer",
	// "nri:Synchronize".
	Source string `json:"source,omitempty"`
}

// A Guarded is the agent's reply once every mark is in place.
type Guarded struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`           // the tenant whose policy applies
	Exempt bool   `json:"exempt,omitempty"` // the platform exempted it: no marks
	Marks  int    `json:"marks"`            // superblock and mount marks placed
	// Unguarded says why the container runs without a gate, as its tenant's onUnguarded
	// allows; "" is guarded or exempt.
	Unguarded string `json:"unguarded,omitempty"`
}

// A Refusal is the body of every non-2xx reply of the agent.
type Refusal struct {
	Message string `json:"error"`            // what is wrong
	Remedy  string `json:"remedy,omitempty"` // what to do about it
}

// Error returns the message and the remedy in one line.
func (r *Refusal) Error() string {
	if r.Remedy == "" {
		return r.Message
	}
	return r.Message + " (" + r.Remedy + ")"
}

// Validate reports what makes the announcement unusable, or nil.
func (c *Container) Validate() error {
	var errs []error
	if c.ID == "" || len(c.ID) > 1024 || strings.ContainsAny(c.ID, "/\x00\n") {
		errs = append(errs, fmt.Errorf("container id %q is not usable", c.ID))
	}
	if c.PID <= 1 {
		errs = append(errs, fmt.Errorf("pid %d is not a container process", c.PID))
	}
	if !filepath.IsAbs(c.Rootfs) || filepath.Clean(c.Rootfs) != c.Rootfs {
		errs = append(errs, fmt.Errorf("rootfs %q is not a clean absolute path", c.Rootfs))
	}
	return errors.Join(errs...)
}
