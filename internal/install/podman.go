// Package install makes container runtimes start the hook, and undoes that. It
// owns the files it writes for them and the checks that nobody but root can
// change what they start. It must not own runtimes' other settings: a file that
// somebody else wrote is never changed or removed, but for one line in containerd's
// configuration where the caller asks for it.
//
// The hook itself is package hook; cmd/assay turns the results into text, and
// internal/doctor examines what is installed.
package install

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/assay-project/assay/hook"
)

// ErrForeign says that a file was written by somebody else.
var ErrForeign = errors.New("not written by assay")

// The runtimes, as the commands name them.
const (
	targetPodman     = "podman"
	targetCRIO       = "cri-o"
	targetContainerd = "containerd"
)

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

// Podman makes podman run the hook for every container it starts from now on.
// It writes one file, all of it or nothing, and creates the directory if needed.
// It refuses a hook or a directory that somebody other than root could change,
// and with ErrForeign to replace a file that it did not write.
func Podman(opts PodmanOptions) (Result, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return Result{}, err
	}
	h := opts.entry()
	content, err := h.content(opts.HookPath, opts.args(), opts.Stage, opts.Timeout)
	if err != nil {
		return Result{}, err
	}
	return h.install(opts.HookPath, content)
}

// UninstallPodman removes what Podman wrote; only HooksDir and DryRun matter.
// Containers that run already are not affected. A file of somebody else is left
// alone, with ErrForeign.
func UninstallPodman(opts PodmanOptions) (Result, error) {
	opts = opts.withDefaults()
	return opts.entry().uninstall()
}

func (o PodmanOptions) withDefaults() PodmanOptions {
	o.HooksDir = cmp.Or(o.HooksDir, DefaultHooksDir)
	o.Socket = cmp.Or(o.Socket, hook.DefaultSocket)
	o.OnAgentMissing = cmp.Or(o.OnAgentMissing, "fail")
	o.Stage = cmp.Or(o.Stage, hook.CreateRuntime)
	o.Timeout = cmp.Or(o.Timeout, hook.DefaultTimeout)
	o.HooksDir, o.HookPath = filepath.Clean(o.HooksDir), filepath.Clean(o.HookPath)
	return o
}

func (o *PodmanOptions) entry() *hooksEntry {
	return &hooksEntry{target: targetPodman, dir: o.HooksDir, dryRun: o.DryRun}
}

// check finds options that would only fail when a container starts.
func (o *PodmanOptions) check() error {
	errs := []error{checkEnvHook(o.HookPath, o.Socket, o.Timeout)}
	if !filepath.IsAbs(o.HooksDir) {
		errs = append(errs, fmt.Errorf("hooks directory %q is not an absolute path", o.HooksDir))
	}
	if strings.ContainsFunc(o.Namespace, unicode.IsControl) {
		errs = append(errs, fmt.Errorf("namespace %q has control characters", o.Namespace))
	}
	if o.OnAgentMissing != "fail" && o.OnAgentMissing != "allow" {
		errs = append(errs, fmt.Errorf("on-agent-missing is %q: it must be fail or allow", o.OnAgentMissing))
	}
	if _, err := hook.ParseStage(string(o.Stage)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// args returns the hook's arguments but for the stage.
func (o *PodmanOptions) args() []string {
	args := []string{"--socket", o.Socket, "--timeout", o.Timeout.String(), "--on-agent-missing", o.OnAgentMissing}
	if o.Namespace != "" {
		args = append(args, "--namespace", o.Namespace)
	}
	return args
}
