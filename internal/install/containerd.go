package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/assay-project/assay/hook"
)

// Where containerd's configuration is, and the directory of what it imports that
// "containerd config default" names since version 2.2.
const (
	DefaultContainerdConfig = "/etc/containerd/config.toml"
	DefaultContainerdDir    = "/etc/containerd/conf.d"
)

// The names of our files. Imports are read in the order of their names, and the last
// one counts.
const (
	DropInFile   = "zz-assay.toml"
	specPrefix   = "zz-assay-"
	specSuffix   = ".json"
	LauncherFile = "10-" + PluginName // NRI starts plugins in this order
)

// ContainerdOptions say how containerd shall start the hook. Only HookPath is required.
type ContainerdOptions struct {
	Containerd    string        // the program; default containerd on PATH
	Ctr           string        // default ctr beside it, else on PATH
	Config        string        // default DefaultContainerdConfig
	Dir           string        // for our files; default DefaultContainerdDir
	HookPath      string        // the assay-hook binary, absolute
	Socket        string        // the agent's; default hook.DefaultSocket
	Exempt        []string      // namespaces; default DefaultExempt
	Timeout       time.Duration // of the hook; default hook.DefaultTimeout
	Handlers      []string      // runtime handlers; default all that run processes of the node
	RequirePlugin bool          // NRI refuses to create containers while the plugin is not there
	Plugin        string        // the assay program, if containerd is to start it as its NRI plugin
	Edit          bool          // add the line to Config by which it imports our file, if it has none
	DryRun        bool          // change nothing, only tell
}

// A ContainerdResult tells what was done, or with DryRun what would be.
type ContainerdResult struct {
	Files    []File   // in the order in which they are written
	Handlers []string // whose containers start with the hook
	LeftOut  []string // the other handlers: nothing guards their containers
	// Import is the line that Config lacks, "" if it has one. Until it has one, nothing
	// of this is in force.
	Import string
	// Manual is what has to be written into Config by hand, because this containerd
	// (1.x) would forget the rest of a plugin's settings over an import.
	Manual string
	// InForce says that containerd's own dump of its configuration has all of it: it
	// counts from the next start of containerd on. Not with DryRun.
	InForce bool
}

// Containerd makes containerd run the hook for every container of its Kubernetes
// service that is created after containerd's next start. It writes a base
// specification for each handler and one file that containerd imports, each whole or
// not at all. It refuses what somebody other than root could change, and with
// ErrForeign to replace a file that it did not write.
func Containerd(ctx context.Context, opts ContainerdOptions) (ContainerdResult, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return ContainerdResult{}, err
	}
	p, err := opts.survey(ctx)
	if err != nil {
		return ContainerdResult{}, err
	}
	r, err := p.plan(ctx)
	if err != nil || opts.DryRun {
		return r, err
	}
	// Before the files, because it is what can still be refused; it imports a pattern,
	// which nothing need match.
	if r.Import != "" && opts.Edit {
		if err := addImport(opts.Config, r.Import); err != nil {
			return r, err
		}
		r.Import = ""
	}
	if err := applyFiles(r.Files); err != nil {
		return r, err
	}
	after, err := dump(ctx, opts.Containerd, opts.Config)
	if err != nil {
		return r, err
	}
	r.InForce = p.inForce(after)
	return r, nil
}

func (o ContainerdOptions) withDefaults() ContainerdOptions {
	o.Containerd = cmp.Or(o.Containerd, targetContainerd)
	o.Config = cmp.Or(o.Config, DefaultContainerdConfig)
	o.Dir = cmp.Or(o.Dir, DefaultContainerdDir)
	o.Socket = cmp.Or(o.Socket, hook.DefaultSocket)
	if o.Exempt == nil {
		o.Exempt = []string{DefaultExempt}
	}
	o.Timeout = cmp.Or(o.Timeout, hook.DefaultTimeout)
	o.Config, o.Dir, o.HookPath = filepath.Clean(o.Config), filepath.Clean(o.Dir), filepath.Clean(o.HookPath)
	return o
}

func (o *ContainerdOptions) dropIn() string { return filepath.Join(o.Dir, DropInFile) }

func (o *ContainerdOptions) spec(handler string) string {
	return filepath.Join(o.Dir, specPrefix+handler+specSuffix)
}

// handlerName is what a handler may be called: part of a file's name, and of a TOML key.
var handlerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// check finds options that would only fail when a container starts.
func (o *ContainerdOptions) check() error {
	errs := []error{checkHook(o.HookPath, o.Socket, o.Timeout), checkExempt(o.Exempt)}
	paths := map[string]string{"configuration": o.Config, "directory": o.Dir}
	if o.Plugin != "" {
		paths["plugin"] = o.Plugin
	}
	for what, path := range paths {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", what, path))
		}
	}
	for what, path := range map[string]string{"directory": o.Dir, "socket": o.Socket, "plugin": o.Plugin} {
		if strings.ContainsFunc(path, func(r rune) bool { return r == '\'' || r < ' ' || r == 0x7f }) || strings.ContainsAny(path, "*?[\\") {
			errs = append(errs, fmt.Errorf("%s %q has characters that mean something else in containerd's configuration or in a shell", what, path))
		}
	}
	return errors.Join(errs...)
}
