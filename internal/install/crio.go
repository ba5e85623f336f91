package install

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/assay-project/assay/hook"
)

// DefaultExempt is the namespace whose containers may start without an agent: the
// agent's own, unless the caller names others.
const DefaultExempt = "assay-system"

// CRIOOptions say how CRI-O shall start the hook. Only HookPath is required.
type CRIOOptions struct {
	HooksDir string        // default DefaultHooksDir
	HookPath string        // the assay-hook binary, absolute
	Socket   string        // the agent's; default hook.DefaultSocket
	Exempt   []string      // namespaces; default DefaultExempt
	Timeout  time.Duration // of the hook; default hook.DefaultTimeout
	DryRun   bool          // change nothing, only tell
}

// CRIO makes CRI-O run the hook for every container it starts from now on, in the
// same way as Podman.
func CRIO(opts CRIOOptions) (Result, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return Result{}, err
	}
	h := opts.entry()
	content, err := h.content(opts.HookPath, criArgs(targetCRIO, opts.Socket, opts.Timeout, opts.Exempt), hook.CreateRuntime, opts.Timeout)
	if err != nil {
		return Result{}, err
	}
	return h.install(opts.HookPath, content)
}

// UninstallCRIO removes what CRIO wrote; only HooksDir and DryRun matter.
func UninstallCRIO(opts CRIOOptions) (Result, error) {
	opts = opts.withDefaults()
	return opts.entry().uninstall()
}

func (o CRIOOptions) withDefaults() CRIOOptions {
	o.HooksDir = cmp.Or(o.HooksDir, DefaultHooksDir)
	o.Socket = cmp.Or(o.Socket, hook.DefaultSocket)
	if o.Exempt == nil {
		o.Exempt = []string{DefaultExempt}
	}
	o.Timeout = cmp.Or(o.Timeout, hook.DefaultTimeout)
	o.HooksDir, o.HookPath = filepath.Clean(o.HooksDir), filepath.Clean(o.HookPath)
	return o
}

func (o *CRIOOptions) entry() *hooksEntry {
	return &hooksEntry{target: targetCRIO, dir: o.HooksDir, dryRun: o.DryRun}
}

func (o *CRIOOptions) check() error {
	errs := []error{checkEnvHook(o.HookPath, o.Socket, o.Timeout), checkExempt(o.Exempt)}
	if !filepath.IsAbs(o.HooksDir) {
		errs = append(errs, fmt.Errorf("hooks directory %q is not an absolute path", o.HooksDir))
	}
	return errors.Join(errs...)
}

// checkExempt finds names that no namespace can have; among them patterns, which
// would match nothing.
func checkExempt(namespaces []string) error {
	for _, name := range namespaces {
		if name == "" || strings.ContainsFunc(name, unicode.IsControl) || strings.ContainsAny(name, "*?[]/ ") {
			return fmt.Errorf("exempt namespace %q is no namespace's name (patterns have no meaning there)", name)
		}
	}
	return nil
}

// criArgs returns the hook's arguments, but for the stage, where Kubernetes' service
// of runtime names the namespaces.
func criArgs(runtime, socket string, timeout time.Duration, exempt []string) []string {
	args := []string{"--runtime", runtime, "--socket", socket, "--timeout", timeout.String()}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(exempt))) {
		args = append(args, "--exempt-namespace", name)
	}
	return args
}
