package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/assay-project/assay/hook"
)

// A containerdPlan is what was found out before anything is changed.
type containerdPlan struct {
	*ContainerdOptions
	main     *containerdConfig // the file at Config alone
	now      *containerdConfig // what is in force
	old      []byte            // the drop-in that is there; nil is none
	before   before
	handlers []Handler // those chosen
	leftOut  []string
}

// survey finds out how containerd is configured, and what to change.
func (o *ContainerdOptions) survey(ctx context.Context) (*containerdPlan, error) {
	text, err := os.ReadFile(o.Config)
	if err != nil {
		return nil, fmt.Errorf("containerd's configuration: %w (make one: containerd config default >%s)", err, o.Config)
	}
	p := &containerdPlan{ContainerdOptions: o}
	if p.main, err = parseConfig(text); err != nil {
		return nil, fmt.Errorf("containerd's configuration %s: %w", o.Config, err)
	}
	if p.main.Version < 2 {
		return nil, fmt.Errorf("containerd's configuration %s is of version %d (containerd --config %s config migrate prints it in a newer one)", o.Config, p.main.Version, o.Config)
	}
	if p.now, err = dump(ctx, o.Containerd, o.Config); err != nil {
		return nil, err
	}
	if p.old, err = readOwn(o.dropIn(), ownDropIn); err != nil {
		return nil, err
	}
	if err := p.choose(); err != nil {
		return nil, err
	}
	return p, p.remember()
}

// choose picks the handlers whose containers are to start with the hook.
func (p *containerdPlan) choose() error {
	all := p.now.handlers()
	for _, name := range p.Handlers {
		if !slices.ContainsFunc(all, func(h Handler) bool { return h.Name == name }) {
			return fmt.Errorf("containerd has no runtime handler %q (it has %s)", name, strings.Join(names(all), ", "))
		}
	}
	for _, h := range all {
		wanted := slices.Contains(p.Handlers, h.Name) || (len(p.Handlers) == 0 && h.Runc())
		switch {
		case !wanted:
			p.leftOut = append(p.leftOut, h.Name)
		case !handlerName.MatchString(h.Name):
			return fmt.Errorf("the name of the runtime handler %q cannot be part of a file's name (choose others with --handler)", h.Name)
		default:
			p.handlers = append(p.handlers, h)
		}
	}
	if len(p.handlers) == 0 {
		return fmt.Errorf("no runtime handler runs processes of the node, with %s (it has %s; name one with --handler)", runcShim, strings.Join(names(all), ", "))
	}
	return nil
}

func names(handlers []Handler) []string {
	var all []string
	for i := range handlers {
		all = append(all, handlers[i].Name)
	}
	return all
}

// remember takes what was in force before our drop-in: from the drop-in, if it is
// there, because what is in force now is its doing.
func (p *containerdPlan) remember() error {
	var old before
	if p.old != nil {
		var err error
		if old, err = beforeOf(p.old); err != nil {
			return err
		}
	}
	validator := p.now.Plugins.NRI.Validator
	p.before = before{Base: map[string]string{}, Required: slices.DeleteFunc(slices.Clone(validator.Required), isPlugin), Tolerate: validator.Tolerate}
	for _, h := range p.handlers {
		base := h.BaseSpec
		// Written into Config by hand there is nothing to remember by: then ours is its own base.
		if was, known := old.Base[h.Name]; known && base == p.spec(h.Name) {
			base = was
		}
		p.before.Base[h.Name] = base
	}
	if p.before.Tolerate == TolerateAnnotation {
		p.before.Tolerate = old.Tolerate
	}
	return nil
}

func isPlugin(name string) bool { return name == PluginName }

// plan returns what is to be written, and checks that it may be.
func (p *containerdPlan) plan(ctx context.Context) (ContainerdResult, error) {
	r := ContainerdResult{Handlers: names(p.handlers), LeftOut: p.leftOut}
	if err := p.checkPaths(); err != nil {
		return r, err
	}
	files, err := p.specFiles(ctx)
	if err != nil {
		return r, err
	}
	if p.Plugin != "" {
		path := filepath.Join(p.now.Plugins.NRI.PluginPath, LauncherFile)
		files = append(files, File{Path: path, Content: launcher(p.Plugin, p.Socket), mode: 0o755, own: ownLauncher})
	}
	d := dropIn{version: p.main.Version, specs: map[string]string{}, handlers: r.Handlers, required: p.RequirePlugin, before: p.before}
	for _, name := range r.Handlers {
		d.specs[name] = p.spec(name)
	}
	if p.now.Version < 3 {
		r.Manual = d.tables()
	} else {
		text, err := d.text()
		if err != nil {
			return r, err
		}
		files = append(files, File{Path: p.dropIn(), Content: text, mode: 0o644, own: ownDropIn})
		if !p.main.imports(p.Config, p.dropIn()) {
			r.Import = importLine(p.dropIn())
		}
	}
	r.Files, err = compare(files)
	return r, err
}

// checkPaths makes sure that only root can change what containerd will start and read.
func (p *containerdPlan) checkPaths() error {
	programs, dirs := []string{p.HookPath}, []string{p.Dir}
	if p.Plugin != "" {
		programs = append(programs, p.Plugin)
		if !filepath.IsAbs(p.now.Plugins.NRI.PluginPath) {
			return fmt.Errorf("containerd's NRI plugin_path %q is not an absolute path", p.now.Plugins.NRI.PluginPath)
		}
		dirs = append(dirs, p.now.Plugins.NRI.PluginPath)
	}
	for _, path := range programs {
		if err := checkPath(path, checkProgram); err != nil {
			return err
		}
	}
	for _, path := range dirs {
		if err := checkExisting(path, checkDir); err != nil {
			return err
		}
	}
	return nil
}

// specFiles returns the base specifications, and those of an earlier installation
// that are to go.
func (p *containerdPlan) specFiles(ctx context.Context) ([]File, error) {
	args := append(criArgs(targetContainerd, p.Socket, p.Timeout, p.Exempt), string(hook.CreateRuntime))
	h := runtimeHook(targetContainerd, p.HookPath, append([]string{filepath.Base(p.HookPath)}, args...), p.Timeout)
	var files []File
	for _, handler := range p.handlers {
		text, err := p.baseSpec(ctx, p.before.Base[handler.Name], &h)
		if err != nil {
			return nil, fmt.Errorf("runtime handler %s: %w", handler.Name, err)
		}
		files = append(files, File{Path: p.spec(handler.Name), Content: text, mode: 0o644, own: ownSpec})
	}
	stale, err := ownSpecs(p.Dir)
	if err != nil {
		return nil, err
	}
	for _, path := range stale {
		if !slices.ContainsFunc(files, func(f File) bool { return f.Path == path }) {
			files = append(files, File{Path: path, own: ownSpec})
		}
	}
	return files, nil
}

// baseSpec returns base, or containerd's default if that is "", with the hook.
func (p *containerdPlan) baseSpec(ctx context.Context, base string, h *specs.Hook) ([]byte, error) {
	if base != "" {
		spec, err := readSpec(base)
		if err != nil {
			return nil, err
		}
		return hooked(spec, h)
	}
	ctr, err := p.ctr()
	if err != nil {
		return nil, err
	}
	spec, err := defaultSpec(ctx, ctr)
	if err != nil {
		return nil, err
	}
	return hooked(spec, h)
}

// ctr returns the program that knows the same default specification as containerd
// does: the one that came with it.
func (o *ContainerdOptions) ctr() (string, error) {
	if o.Ctr != "" {
		return o.Ctr, nil
	}
	program, err := lookPath(o.Containerd)
	if err != nil {
		return "", err
	}
	if beside := filepath.Join(filepath.Dir(program), "ctr"); checkPath(beside, checkProgram) == nil {
		return beside, nil
	}
	return lookPath("ctr")
}

// inForce reports whether a dump has our base specification for every handler, and
// requires the plugin if it is to.
func (p *containerdPlan) inForce(now *containerdConfig) bool {
	for _, h := range now.handlers() {
		ours := slices.ContainsFunc(p.handlers, func(o Handler) bool { return o.Name == h.Name })
		if ours && h.BaseSpec != p.spec(h.Name) {
			return false
		}
	}
	return !p.RequirePlugin || slices.Contains(now.Plugins.NRI.Validator.Required, PluginName)
}
