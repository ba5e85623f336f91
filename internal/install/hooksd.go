package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/assay-project/assay/hook"
)

// DefaultHooksDir is the one directory that podman and CRI-O read without being told
// to (containers.conf(5) and crio.conf(5), hooks_dir). In particular they do not read
// /etc/containers/oci/hooks.d, and podman says nothing when a directory is missing.
const DefaultHooksDir = "/usr/share/containers/oci/hooks.d"

// HooksFile is the name of the entry. Runtimes run hooks in the order of these
// names (oci-hooks(5)), and the hook should come after those that still mount
// something into the container.
const HooksFile = "zz-assay.json"

// markerKey begins a hook's whole environment, which ends with the runtime that it
// was installed for: it marks what we wrote as ours, and keeps the environment of
// whoever starts the runtime away from the hook.
const markerKey = "ASSAY_INSTALLED="

// envPath starts the hook. Podman leaves out an entry whose path does not exist
// and starts the container without a word (checked with 4.3; 5.2 and CRI-O 1.37
// have the same code), so that a hook lost in an upgrade would leave everything
// unguarded. With a path that does exist the runtime finds the hook missing, and fails.
const envPath = "/usr/bin/env"

// grace is how much longer than the hook's own the runtime's clock runs. The hook
// keeps its own time, the wait for a missing agent included, and says what it waited
// for. The runtime's clock only ends a hook that cannot: one that hangs in a broken
// file system.
const grace = 10 * time.Second

// runtimeHook returns how a runtime starts the hook: path with args, in an environment
// that marks it as installed for target.
func runtimeHook(target, path string, args []string, timeout time.Duration) specs.Hook {
	limit := int((timeout + grace).Seconds())
	return specs.Hook{Path: path, Args: args, Env: []string{markerKey + target}, Timeout: &limit}
}

// entry is a hooks.d file of schema 1.0.0 (oci-hooks(5)).
type entry struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    when       `json:"when"`
	Stages  []string   `json:"stages"`
}

type when struct {
	Always bool `json:"always"`
}

// A hooksEntry is the entry of one runtime in its hooks directory.
type hooksEntry struct {
	target string // "podman" or "cri-o"
	dir    string
	dryRun bool
}

func (h *hooksEntry) file() string { return filepath.Join(h.dir, HooksFile) }

// content returns the entry's file. It runs the hook with args at stage.
func (h *hooksEntry) content(program string, args []string, stage hook.Stage, timeout time.Duration) ([]byte, error) {
	args = slices.Concat([]string{"env", program}, args, []string{string(stage)})
	data, err := json.MarshalIndent(entry{
		Version: "1.0.0",
		Hook:    runtimeHook(h.target, envPath, args, timeout),
		When:    when{Always: true},
		Stages:  []string{string(stage)},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the entry: %w", err)
	}
	return append(data, '\n'), nil
}

// install writes content, which starts program, unless it is there already.
func (h *hooksEntry) install(program string, content []byte) (Result, error) {
	for _, path := range []string{program, envPath} {
		if err := checkPath(path, checkProgram); err != nil {
			return Result{}, err
		}
	}
	r := Result{Path: h.file(), Content: content}
	if err := checkExisting(h.dir, checkDir); err != nil {
		return r, err
	}
	old, err := h.readOwn()
	if err != nil {
		return r, err
	}
	r.Changed = !bytes.Equal(old, content)
	if !r.Changed || h.dryRun {
		return r, nil
	}
	if err := makeDir(h.dir); err != nil {
		return r, err
	}
	return r, replaceFile(r.Path, content, 0o644)
}

// uninstall removes what install wrote.
func (h *hooksEntry) uninstall() (Result, error) {
	r := Result{Path: h.file()}
	if !filepath.IsAbs(h.dir) {
		return r, fmt.Errorf("hooks directory %q is not an absolute path", h.dir)
	}
	old, err := h.readOwn()
	if err != nil || old == nil {
		return r, err
	}
	r.Changed = true
	if h.dryRun {
		return r, nil
	}
	if err := os.Remove(r.Path); err != nil {
		return r, fmt.Errorf("remove the entry: %w", err)
	}
	return r, syncDir(h.dir)
}

// readOwn returns the content of an entry that install wrote, nil if there is
// none, or an error that wraps ErrForeign. The entry of another runtime is an error
// of its own: two runtimes that read one directory would run each other's hook.
func (h *hooksEntry) readOwn() ([]byte, error) {
	var other string
	data, err := readOwn(h.file(), func(data []byte) bool {
		target := entryTarget(data)
		if target != "" && target != h.target {
			other = target
		}
		return target == h.target
	})
	if err != nil && other != "" {
		return nil, fmt.Errorf("%s is %s's, and %w for %s (give one of the two a directory of its own: hooks_dir in its configuration, and --hooks-dir here)",
			h.file(), other, ErrForeign, h.target)
	}
	return data, err
}

// entryTarget returns the runtime for which install wrote the entry, or "" if it
// did not.
func entryTarget(data []byte) string {
	var e entry
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil || len(e.Hook.Env) != 1 {
		return ""
	}
	target, _ := strings.CutPrefix(e.Hook.Env[0], markerKey)
	if !slices.Contains([]string{targetPodman, targetCRIO}, target) {
		return ""
	}
	return target
}

// checkHook finds what is wrong with how a hook is to be started, before a container
// has to.
func checkHook(path, socket string, timeout time.Duration) error {
	var errs []error
	for what, path := range map[string]string{"hook": path, "socket": socket} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", what, path))
		}
	}
	if len(socket) > hook.MaxSocket {
		errs = append(errs, fmt.Errorf("socket %q is longer than %d bytes", socket, hook.MaxSocket))
	}
	if timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout %v is negative", timeout))
	}
	return errors.Join(errs...)
}

// checkEnvHook is checkHook for a hook that env(1) starts.
func checkEnvHook(path, socket string, timeout time.Duration) error {
	err := checkHook(path, socket, timeout)
	if strings.Contains(path, "=") {
		err = errors.Join(err, fmt.Errorf("hook %q has a = in it, which env(1) takes for a variable", path))
	}
	return err
}
