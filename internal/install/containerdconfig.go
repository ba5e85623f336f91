package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// maxDump bounds what a program may print, in bytes, and maxWait how long it may take.
const (
	maxDump = 4 << 20
	maxWait = 10 * time.Second
)

// A criConfig is the part of containerd's Kubernetes service that says how
// containers are made.
type criConfig struct {
	Containerd struct {
		Runtimes map[string]struct {
			Type     string `toml:"runtime_type"`
			BaseSpec string `toml:"base_runtime_spec"`
		} `toml:"runtimes"`
	} `toml:"containerd"`
}

// An nriConfig is what we have to know of containerd's NRI service.
type nriConfig struct {
	PluginPath string `toml:"plugin_path"`
	Validator  struct {
		Required []string `toml:"required_plugins"`
		Tolerate string   `toml:"tolerate_missing_plugins_annotation"`
	} `toml:"default_validator"`
}

// The names of containerd's plugins; oldCRI is what criPlugin was called before
// version 3 of the configuration.
const (
	criPlugin = "io.containerd.cri.v1.runtime"
	oldCRI    = "io.containerd.grpc.v1.cri"
	nriPlugin = "io.containerd.nri.v1.nri"
)

// runcShim is the type of the handlers whose containers are processes of the node,
// with their root filesystem mounted on it.
const runcShim = "io.containerd.runc.v2"

// A containerdConfig is a configuration file of containerd, or what
// "containerd config dump" makes of all of them.
type containerdConfig struct {
	Version int      `toml:"version"`
	Imports []string `toml:"imports"`
	Plugins struct {
		CRI    criConfig `toml:"io.containerd.cri.v1.runtime"`
		OldCRI criConfig `toml:"io.containerd.grpc.v1.cri"`
		NRI    nriConfig `toml:"io.containerd.nri.v1.nri"`
	} `toml:"plugins"`
}

func parseConfig(text []byte) (*containerdConfig, error) {
	c := new(containerdConfig)
	if err := toml.Unmarshal(text, c); err != nil {
		if where, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := where.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
		}
		return nil, err
	}
	return c, nil
}

// A Handler is one of containerd's runtime handlers, which pods select by their
// RuntimeClass.
type Handler struct {
	Name     string
	Type     string // the shim, as io.containerd.runc.v2
	BaseSpec string // the file that every container's specification begins with, "" is none
}

// Runc reports whether the handler's containers are processes of the node, so that
// a hook can guard them: not those of virtual machines or of another kernel.
func (h *Handler) Runc() bool { return h.Type == runcShim }

// handlers returns the handlers of a dump, by name.
func (c *containerdConfig) handlers() []Handler {
	runtimes := c.Plugins.CRI.Containerd.Runtimes
	if len(runtimes) == 0 {
		runtimes = c.Plugins.OldCRI.Containerd.Runtimes
	}
	var all []Handler
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		all = append(all, Handler{Name: name, Type: runtimes[name].Type, BaseSpec: runtimes[name].BaseSpec})
	}
	return all
}

// imports reports whether containerd reads file because the configuration at path
// names it (cmd/containerd/server/config, resolveImports). What a dump calls imports
// does not count: it has the default pattern, also where nothing is read by it.
func (c *containerdConfig) imports(path, file string) bool {
	return slices.ContainsFunc(c.Imports, func(pattern string) bool {
		pattern = filepath.Clean(pattern)
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		matches, err := filepath.Match(pattern, file)
		return err == nil && matches
	})
}

// output runs a program that only tells something, and returns what it prints. The
// error has what it says on standard error.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = maxWait
	out, err := cmd.Output()
	what := strings.Join(append([]string{program}, args...), " ")
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return nil, fmt.Errorf("%s: %w: %s", what, err, bytes.TrimSpace(exit.Stderr))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case len(out) > maxDump:
		return nil, fmt.Errorf("%s printed %d bytes, more than %d", what, len(out), maxDump)
	}
	return out, nil
}

// dump asks the containerd program what its configuration at path means.
func dump(ctx context.Context, program, path string) (*containerdConfig, error) {
	text, err := output(ctx, program, "--config", path, "config", "dump")
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s --config %s config dump: %w", program, path, err)
	}
	if len(c.handlers()) == 0 {
		return nil, fmt.Errorf("%s --config %s config dump: no runtime handlers (is the Kubernetes service, %s, disabled or not built in?)", program, path, criPlugin)
	}
	return c, nil
}

// defaultSpec asks ctr for the specification that containerd itself begins a
// container with where a handler has no base_runtime_spec, and takes out of it what
// the Kubernetes service takes out only then: profiles and limits that are to come
// from the pod (internal/cri/opts, WithoutDefaultSecuritySettings).
func defaultSpec(ctx context.Context, ctr string) (map[string]any, error) {
	text, err := output(ctx, ctr, "oci", "spec")
	if err != nil {
		return nil, err
	}
	spec, err := parseSpec(text)
	if err != nil {
		return nil, fmt.Errorf("%s oci spec: %w", ctr, err)
	}
	if process, ok := spec["process"].(map[string]any); ok {
		delete(process, "apparmorProfile")
		delete(process, "rlimits")
	}
	if linux, ok := spec["linux"].(map[string]any); ok {
		delete(linux, "seccomp")
	}
	return spec, nil
}

// parseSpec reads an OCI runtime specification without losing anything of it.
func parseSpec(text []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var spec map[string]any
	if err := decoder.Decode(&spec); err != nil {
		return nil, err
	}
	if _, ok := spec["ociVersion"].(string); !ok {
		return nil, errors.New("no OCI runtime specification: it has no ociVersion")
	}
	return spec, nil
}

// readSpec reads the base specification that a handler has already.
func readSpec(path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the handler's base_runtime_spec: %w", err)
	}
	spec, err := parseSpec(text)
	if err != nil {
		return nil, fmt.Errorf("the handler's base_runtime_spec %s: %w", path, err)
	}
	return spec, nil
}
