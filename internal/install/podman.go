// Package install makes container runtimes start the hook, and undoes that. It
// owns the files it writes for them and the checks that nobody but root can
// change what they start. It must not own runtimes' other settings: a file that
// somebody else wrote is never changed or removed.
//
// The hook itself is package hook; cmd/assay turns the results into text.
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
	"unicode"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/assay-project/assay/hook"
)

// DefaultHooksDir is the one directory that podman reads without being told to
// (containers.conf(5), hooks_dir). In particular it does not read
// /etc/containers/oci/hooks.d, and it says nothing when a directory is missing.
const DefaultHooksDir = "/usr/share/containers/oci/hooks.d"

// PodmanFile is the name of the entry. Runtimes run hooks in the order of these
// names (oci-hooks(5)), and the hook should come after those that still mount
// something into the container.
const PodmanFile = "zz-assay.json"

// ErrForeign says that the entry's file was written by somebody else.
var ErrForeign = errors.New("not written by assay")

// marker is the hook's whole environment: it marks an entry as ours, and keeps
// that of whoever starts podman away from the hook.
const marker = "ASSAY_INSTALLED=podman"

// envPath starts the hook. Podman leaves out an entry whose path does not exist
// and starts the container without a word (checked with 4.3; 5.2 has the same
// code), so that a hook lost in an upgrade would leave everything unguarded.
// With a path that does exist the runtime finds the hook missing, and fails.
const envPath = "/usr/bin/env"

// PodmanOptions say how podman shall start the hook. Only HookPath is required.
type PodmanOptions struct {
	HooksDir       string        // default DefaultHooksDir
	HookPath       string        // the assay-hook binary, absolute
	Socket         string        // the agent's; default hook.DefaultSocket
	Namespace      string        // for every container; default none
	OnAgentMissing string        // "fail" or "allow"; default "fail"
	Stage          hook.Stage    // default hook.CreateRuntime
	Timeout        time.Duration // of the hook; default hook.DefaultTimeout
	DryRun         bool          // change nothing, only tell
}

// A Result tells what was done, or with DryRun what would be.
type Result struct {
	Path    string // the file
	Changed bool   // false: everything was as wanted already
	Content []byte // what the file holds now; nil after an uninstall
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

// Podman makes podman run the hook for every container it starts from now on.
// It writes one file, all of it or nothing, and creates the directory if needed.
// It refuses a hook or a directory that somebody other than root could change,
// and with ErrForeign to replace a file that it did not write.
func Podman(opts PodmanOptions) (Result, error) {
	opts = opts.withDefaults()
	content, err := opts.content()
	if err != nil {
		return Result{}, err
	}
	for _, program := range []string{opts.HookPath, envPath} {
		if err := checkPath(program, checkProgram); err != nil {
			return Result{}, err
		}
	}
	r := Result{Path: opts.file(), Content: content}
	if err := checkExisting(opts.HooksDir, checkDir); err != nil {
		return r, err
	}
	old, err := readOwn(r.Path)
	if err != nil {
		return r, err
	}
	r.Changed = !bytes.Equal(old, content)
	if !r.Changed || opts.DryRun {
		return r, nil
	}
	if err := os.MkdirAll(opts.HooksDir, 0o755); err != nil {
		return r, fmt.Errorf("create the hooks directory: %w", err)
	}
	// Once more, in case that somebody else has just created it.
	if err := checkPath(opts.HooksDir, checkDir); err != nil {
		return r, err
	}
	return r, replaceFile(r.Path, content)
}

// UninstallPodman removes what Podman wrote; only HooksDir and DryRun matter.
// Containers that run already are not affected. A file of somebody else is left
// alone, with ErrForeign.
func UninstallPodman(opts PodmanOptions) (Result, error) {
	opts = opts.withDefaults()
	r := Result{Path: opts.file()}
	if !filepath.IsAbs(opts.HooksDir) {
		return r, fmt.Errorf("hooks directory %q is not an absolute path", opts.HooksDir)
	}
	old, err := readOwn(r.Path)
	if err != nil || old == nil {
		return r, err
	}
	r.Changed = true
	if opts.DryRun {
		return r, nil
	}
	if err := os.Remove(r.Path); err != nil {
		return r, fmt.Errorf("remove the entry: %w", err)
	}
	return r, syncDir(opts.HooksDir)
}

func (o PodmanOptions) withDefaults() PodmanOptions {
	if o.HooksDir == "" {
		o.HooksDir = DefaultHooksDir
	}
	if o.Socket == "" {
		o.Socket = hook.DefaultSocket
	}
	if o.OnAgentMissing == "" {
		o.OnAgentMissing = "fail"
	}
	if o.Stage == "" {
		o.Stage = hook.CreateRuntime
	}
	if o.Timeout == 0 {
		o.Timeout = hook.DefaultTimeout
	}
	o.HooksDir, o.HookPath = filepath.Clean(o.HooksDir), filepath.Clean(o.HookPath)
	return o
}

func (o *PodmanOptions) file() string { return filepath.Join(o.HooksDir, PodmanFile) }

// check finds options that would only fail when a container starts.
func (o *PodmanOptions) check() error {
	var errs []error
	for what, path := range map[string]string{"hooks directory": o.HooksDir, "hook": o.HookPath, "socket": o.Socket} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", what, path))
		}
	}
	if strings.Contains(o.HookPath, "=") {
		errs = append(errs, fmt.Errorf("hook %q has a = in it, which env(1) takes for a variable", o.HookPath))
	}
	if len(o.Socket) > hook.MaxSocket {
		errs = append(errs, fmt.Errorf("socket %q is longer than %d bytes", o.Socket, hook.MaxSocket))
	}
	if strings.ContainsFunc(o.Namespace, unicode.IsControl) {
		errs = append(errs, fmt.Errorf("namespace %q has control characters", o.Namespace))
	}
	if o.OnAgentMissing != "fail" && o.OnAgentMissing != "allow" {
		errs = append(errs, fmt.Errorf("on-agent-missing is %q: it must be fail or allow", o.OnAgentMissing))
	}
	if o.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout %v is negative", o.Timeout))
	}
	if _, err := hook.ParseStage(string(o.Stage)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// content returns the entry's file.
func (o *PodmanOptions) content() ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	args := []string{"env", o.HookPath, "--socket", o.Socket, "--timeout", o.Timeout.String(), "--on-agent-missing", o.OnAgentMissing}
	if o.Namespace != "" {
		args = append(args, "--namespace", o.Namespace)
	}
	args = append(args, string(o.Stage))
	// The hook keeps its own time, the wait for a missing agent included, and says
	// what it waited for. The runtime's clock only ends a hook that cannot: one that hangs in a broken file system.
	limit := int((o.Timeout + 10*time.Second).Seconds())
	data, err := json.MarshalIndent(entry{
		Version: "1.0.0",
		Hook:    specs.Hook{Path: envPath, Args: args, Env: []string{marker}, Timeout: &limit},
		When:    when{Always: true},
		Stages:  []string{string(o.Stage)},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the entry: %w", err)
	}
	return append(data, '\n'), nil
}

// maxEntry bounds the file that is read back, in bytes.
const maxEntry = 64 << 10

// readOwn returns the content of an entry that Podman wrote, nil if there is
// none, or an error that wraps ErrForeign.
func readOwn(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for an earlier entry: %w", err)
	}
	foreign := fmt.Errorf("%s is %w (move it away if it is no longer needed)", path, ErrForeign)
	if !info.Mode().IsRegular() || info.Size() > maxEntry {
		return nil, foreign
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the earlier entry: %w", err)
	}
	var e entry
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil || !slices.Equal(e.Hook.Env, []string{marker}) {
		return nil, foreign
	}
	return data, nil
}
