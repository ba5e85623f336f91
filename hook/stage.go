package hook

import (
	"errors"
	"fmt"
)

// A Stage is a point in a container's start at which a container can be guarded.
type Stage string

// The stages that work: the container's first process exists with its pid
// visible on the host, every mount of the container is in place, and nothing of
// the container has run. Both run at the same moment, prestart first.
const (
	CreateRuntime Stage = "createRuntime"
	Prestart      Stage = "prestart"
)

// ErrStage is wrapped by every error of ParseStage.
var ErrStage = errors.New("cannot guard a container in this stage")

const useInstead = "use createRuntime, or prestart with runtimes that predate it"

// ParseStage returns the stage with that name as the OCI runtime specification
// spells it, or an error that wraps ErrStage and says why the stage can not
// work and which ones do.
func ParseStage(name string) (Stage, error) {
	switch s := Stage(name); s {
	case CreateRuntime, Prestart:
		return s, nil
	default:
		return "", fmt.Errorf("%w: %s (%s)", ErrStage, whyNot(name), useInstead)
	}
}

func whyNot(name string) string {
	switch name {
	case "precreate":
		return "precreate: the container's process does not exist yet"
	case "createContainer":
		return "createContainer: the runtime passes the pid inside the container (1, or 0), so the agent cannot find the process"
	case "startContainer":
		return "startContainer: it runs inside the container, where the hook would have to come from the image it is to guard"
	case "poststart":
		return "poststart: the container's program is already running"
	case "poststop":
		return "poststop: the container is already gone"
	default:
		return fmt.Sprintf("unknown stage %q", name)
	}
}
