package hook

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Upper bounds of what is read, in bytes. Real states have under 10 KB; a
// config.json with a long seccomp profile some 100 KB.
const (
	maxState  = 1 << 20
	maxConfig = 16 << 20
)

// readState reads the container state that a runtime writes to a hook's
// standard input, and checks that it describes a container about to start. The
// state is also returned with an error as far as it could be understood, so
// that the container can be named. Errors wrap ErrState.
func readState(r io.Reader) (*specs.State, error) {
	state := new(specs.State)
	data, err := readBounded(r, maxState)
	if err != nil {
		return state, fmt.Errorf("%w: read standard input: %w", ErrState, err)
	}
	if len(data) == 0 {
		return state, fmt.Errorf("%w: standard input is empty (a runtime passes the state there; this program is not meant to be started by hand)", ErrState)
	}
	if err := json.Unmarshal(data, state); err != nil {
		return state, fmt.Errorf("%w: standard input is not an OCI container state: %w", ErrState, err)
	}
	return state, checkState(state)
}

func checkState(s *specs.State) error {
	switch {
	case s.Pid <= 1:
		return fmt.Errorf("%w: pid is %d, not a process of the host (%s)", ErrState, s.Pid, useInstead)
	case s.Status != specs.StateCreating && s.Status != specs.StateCreated:
		return fmt.Errorf("%w: status is %q, only \"creating\" and \"created\" can still be guarded (%s)", ErrState, s.Status, useInstead)
	case !filepath.IsAbs(s.Bundle):
		return fmt.Errorf("%w: bundle %q is not an absolute path", ErrState, s.Bundle)
	}
	return nil
}

// rootfs returns the container's root filesystem as seen before the pivot, from
// the bundle's config.json, without symbolic links: runtimes resolve the path
// before they mount it, and the agent compares it with mount points, which
// never go through a link. The links are followed in the runtime's mount
// namespace, of which the container's is a copy, and above the root filesystem,
// where the container cannot write.
func rootfs(bundle string) (string, error) {
	path, err := rootPath(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(bundle, path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("%w: root filesystem: %w", ErrState, err)
	}
	return resolved, nil
}

// rootPath returns root.path of the given config.json.
func rootPath(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("%w: bundle: %w", ErrState, err)
	}
	defer f.Close()
	data, err := readBounded(f, maxConfig)
	if err != nil {
		return "", fmt.Errorf("%w: read %s: %w", ErrState, file, err)
	}
	var config struct {
		Root *specs.Root `json:"root"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrState, file, err)
	}
	if config.Root == nil || config.Root.Path == "" {
		return "", fmt.Errorf("%w: %s names no root filesystem (root.path)", ErrState, file)
	}
	return config.Root.Path, nil
}

// readBounded reads r to its end, or fails if it has more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
