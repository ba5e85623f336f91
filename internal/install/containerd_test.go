package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// node makes a directory that can stand for a node's with containerd. Its program
// prints the file "dump", its ctr what containerd 2.2.9's does.
func node(t *testing.T, config, dump string) ContainerdOptions {
	t.Helper()
	h := host(t)
	root := filepath.Dir(filepath.Dir(h.HookPath))
	write(t, root+"/config.toml", config, 0o640)
	write(t, root+"/dump", dump, 0o644)
	write(t, root+"/bin/containerd", "#!/bin/sh\nexec cat '"+root+"/dump'\n", 0o755)
	write(t, root+"/bin/ctr", "#!/bin/sh\nexec cat '"+root+"/spec'\n", 0o755)
	write(t, root+"/spec", recorded(t, "spec-2.2.9.json"), 0o644)
	return ContainerdOptions{Containerd: root + "/bin/containerd", Config: root + "/config.toml", Dir: root + "/conf.d", HookPath: h.HookPath}
}

// recorded returns what a real program printed.
func recorded(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	must(t, err)
	return string(text)
}

// dumped is a dump of the given version with one handler.
func dumped(version int, base string) string {
	cri := criPlugin
	if version < 3 {
		cri = oldCRI
	}
	return fmt.Sprintf("version = %d\n[plugins.'%s'.containerd.runtimes.runc]\nruntime_type = '%s'\nbase_runtime_spec = '%s'\n", version, cri, runcShim, base)
}

const plainConfig = "version = 3\n"

func TestRecordedDumps(t *testing.T) {
	for _, name := range []string{"dump-2.2.9.toml", "dump-2.4.2.toml"} {
		c, err := parseConfig([]byte(recorded(t, name)))
		must(t, err)
		want := []Handler{
			{Name: "crun", Type: runcShim},
			{Name: "kata", Type: "io.containerd.kata.v2"},
			{Name: "runc", Type: runcShim, BaseSpec: "/etc/containerd/base.json"},
		}
		if got := c.handlers(); !slices.Equal(got, want) {
			t.Errorf("%s: handlers %+v, want %+v", name, got, want)
		}
		if nri := c.Plugins.NRI; nri.PluginPath != "/opt/nri/plugins" || !slices.Equal(nri.Validator.Required, []string{"theirs"}) {
			t.Errorf("%s: NRI %+v", name, nri)
		}
	}
}

func TestDropInText(t *testing.T) {
	d := dropIn{
		version: 3, handlers: []string{"a.b", "runc"}, specs: map[string]string{"a.b": "/d/zz-assay-a.b.json", "runc": "/d/zz-assay-runc.json"},
		before: before{Base: map[string]string{"a.b": "", "runc": "/etc/base.json"}, Required: []string{"theirs"}},
	}
	text, err := d.text()
	must(t, err)
	_, got, _ := strings.Cut(string(text), "\n")
	const want = `# What was in force before: {"base":{"a.b":"","runc":"/etc/base.json"},"required":["theirs"]}
version = 3

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'a.b']
  base_runtime_spec = '/d/zz-assay-a.b.json'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'runc']
  base_runtime_spec = '/d/zz-assay-runc.json'

[plugins.'io.containerd.nri.v1.nri']
  disable = false
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if b, err := beforeOf(text); err != nil || !reflect.DeepEqual(b, d.before) {
		t.Errorf("remembered %+v, %v", b, err)
	}

	d.version, d.required = 2, true
	tables := d.tables()
	for _, part := range []string{
		"[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'runc']",
		"required_plugins = ['theirs', 'assay']", "tolerate_missing_plugins_annotation = 'tolerate-missing-plugin.assay'",
	} {
		if !strings.Contains(tables, part) {
			t.Errorf("no %s in\n%s", part, tables)
		}
	}
	d.before.Tolerate = "theirs.example"
	if tables = d.tables(); !strings.Contains(tables, "annotation = 'theirs.example'") {
		t.Errorf("the node's own annotation is lost:\n%s", tables)
	}
}

func TestSealed(t *testing.T) {
	for _, start := range []string{"", shebang} {
		text := seal(start, "a = 1\n")
		if !sealed(start, text) {
			t.Errorf("not ours: %s", text)
		}
		for _, foreign := range []string{"", "a = 1\n", string(text) + "\n", strings.Replace(string(text), "a = 1", "a = 2", 1), "#\n" + string(text)} {
			if sealed(start, []byte(foreign)) {
				t.Errorf("ours: %q", foreign)
			}
		}
	}
}

func TestImports(t *testing.T) {
	const file = "/etc/containerd/conf.d/zz-assay.toml"
	for pattern, want := range map[string]bool{
		"/etc/containerd/conf.d/*.toml": true, "/etc/containerd/conf.d/../conf.d/zz-*": true, "conf.d/*.toml": true, file: true,
		"/etc/containerd/*.toml": false, "/etc/containerd/conf.d/a*.toml": false, "*.toml": false, "[": false,
	} {
		c := containerdConfig{Imports: []string{"/other", pattern}}
		if got := c.imports(DefaultContainerdConfig, file); got != want {
			t.Errorf("%s: %v, want %v", pattern, got, want)
		}
	}
	var line containerdConfig
	c, err := parseConfig([]byte(importLine(file)))
	must(t, err)
	line = *c
	if !line.imports("/elsewhere/config.toml", file) {
		t.Errorf("%s does not import %s", importLine(file), file)
	}
}

// The specification keeps all that it has, numbers as they are, and the hooks of others.
func TestBaseSpecOfTheirs(t *testing.T) {
	opts := node(t, plainConfig, "")
	theirs := filepath.Dir(opts.Config) + "/theirs.json"
	write(t, theirs, `{"ociVersion":"1.1.0","x":18446744073709551615,"process":{"rlimits":[{"type":"RLIMIT_CORE"}]},`+
		`"hooks":{"createRuntime":[{"path":"/theirs"},{"path":"/old","env":["`+ourHook+`"]}],"poststop":[{"path":"/after"}]}}`, 0o644)
	write(t, filepath.Dir(opts.Config)+"/dump", dumped(3, theirs), 0o644)
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	text, err := os.ReadFile(opts.spec("runc"))
	must(t, err)
	var spec struct {
		X       json.Number
		Process struct{ Rlimits []any }
		Hooks   map[string][]struct{ Path string }
	}
	must(t, json.Unmarshal(text, &spec))
	paths := []string{}
	for _, h := range spec.Hooks["createRuntime"] {
		paths = append(paths, h.Path)
	}
	if spec.X != "18446744073709551615" || len(spec.Process.Rlimits) != 1 || len(spec.Hooks["poststop"]) != 1 || !slices.Equal(paths, []string{"/theirs", opts.HookPath}) {
		t.Errorf("got %s", text)
	}

	// Once ours is in force, theirs is still what it is made from.
	write(t, filepath.Dir(opts.Config)+"/dump", dumped(3, opts.spec("runc")), 0o644)
	write(t, theirs, `{"ociVersion":"1.1.1"}`, 0o644)
	r, err := Containerd(t.Context(), opts)
	must(t, err)
	if text, err := os.ReadFile(opts.spec("runc")); err != nil || !strings.Contains(string(text), `"1.1.1"`) || !r.InForce {
		t.Errorf("in force %v, %v: %s", r.InForce, err, text)
	}
	write(t, theirs, `{}`, 0o644)
	if _, err := Containerd(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "theirs.json: no OCI runtime specification") {
		t.Errorf("error %v", err)
	}
}

// Without one, it is what containerd's Kubernetes service would begin with.
func TestBaseSpecOfContainerd(t *testing.T) {
	opts := node(t, plainConfig, dumped(3, ""))
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	var got, want map[string]any
	text, err := os.ReadFile(opts.spec("runc"))
	must(t, err)
	must(t, json.Unmarshal(text, &got))
	must(t, json.Unmarshal([]byte(recorded(t, "spec-2.2.9.json")), &want))
	process, _ := want["process"].(map[string]any)
	if process["rlimits"] == nil {
		t.Fatal("the recorded specification has no limits to take out")
	}
	delete(process, "rlimits")
	delete(got, "hooks")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
	h, err := SpecHook(text)
	must(t, err)
	wantArgs := []string{"assay-hook", "--runtime", "containerd", "--socket", "/run/assay/agent.sock", "--timeout", "30s", "--exempt-namespace", "assay-system", "createRuntime"}
	if h == nil || h.Path != opts.HookPath || !slices.Equal(h.Args, wantArgs) || *h.Timeout != 40 {
		t.Errorf("hook %+v", h)
	}
	if info, err := os.Stat(opts.spec("runc")); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// What counts is containerd's own dump.
func TestContainerdNotInForce(t *testing.T) {
	opts := node(t, plainConfig, dumped(3, ""))
	opts.Edit = true
	r, err := Containerd(t.Context(), opts)
	if err != nil || r.InForce || r.Import != "" {
		t.Fatalf("got %+v, %v", r, err)
	}
	write(t, filepath.Dir(opts.Config)+"/dump", dumped(3, opts.spec("runc")), 0o644)
	if r, err = Containerd(t.Context(), opts); err != nil || !r.InForce {
		t.Fatalf("got %+v, %v", r, err)
	}
	opts.RequirePlugin = true
	if r, err = Containerd(t.Context(), opts); err != nil || r.InForce {
		t.Fatalf("without the required plugin: %+v, %v", r, err)
	}
}

// An old containerd would forget a plugin's other settings.
func TestContainerdOld(t *testing.T) {
	opts := node(t, "version = 2\nimports = ['conf.d/*.toml']\n", dumped(2, ""))
	r, err := Containerd(t.Context(), opts)
	must(t, err)
	if !strings.Contains(r.Manual, "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'runc']") || r.InForce {
		t.Errorf("got %+v", r)
	}
	if _, err := os.Stat(opts.dropIn()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the drop-in was written: %v", err)
	}
	// As long as it is named there, it must stay.
	write(t, opts.Config, "version = 2\n"+r.Manual, 0o644)
	if _, err := UninstallContainerd(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "take it out of there first") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(opts.spec("runc")); err != nil {
		t.Errorf("the specification is gone: %v", err)
	}
	write(t, filepath.Dir(opts.Config)+"/dump", dumped(2, opts.spec("runc")), 0o644)
	if r, err = Containerd(t.Context(), opts); err != nil || !r.InForce {
		t.Errorf("got %+v, %v", r, err)
	}
}

// A newer containerd reads an older configuration, and imports of the same version.
func TestContainerdVersionOfImports(t *testing.T) {
	opts := node(t, "version = 2\nimports = ['conf.d/*.toml']\n", dumped(3, ""))
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	text, err := os.ReadFile(opts.dropIn())
	must(t, err)
	if !strings.Contains(string(text), "\nversion = 2\n") || !strings.Contains(string(text), oldCRI) {
		t.Errorf("got\n%s", text)
	}
}

func TestContainerdEditRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		config string
		change func(t *testing.T, path string)
		err    string
	}{
		"imports of its own": {"version = 3\nimports = ['/other/*']\n", nil, "it has imports already"},
		"no version's line":  {"'version' = 3\n", nil, "no line that begins with version"},
		"a link": {plainConfig, func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Rename(path, path+".real"))
			must(t, os.Symlink(path+".real", path))
		}, "is a link"},
		"others' too": {plainConfig, func(t *testing.T, path string) { t.Helper(); must(t, os.Chmod(path, 0o666)) }, "changed by others"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := node(t, tt.config, dumped(3, ""))
			opts.Edit = true
			if tt.change != nil {
				tt.change(t, opts.Config)
			}
			if _, err := Containerd(t.Context(), opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if found, err := filepath.Glob(opts.Dir + "/*"); err != nil || len(found) != 0 {
				t.Errorf("written: %q, %v", found, err)
			}
			if text, err := os.ReadFile(opts.Config); err != nil || string(text) != tt.config {
				t.Errorf("changed to %q, %v", text, err)
			}
		})
	}
}

func TestContainerdEditKeeps(t *testing.T) {
	const config = "# first\nversion = 3 # three\n\n[plugins]\nversion = 'x'\n"
	opts := node(t, config, dumped(3, ""))
	opts.Edit = true
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	text, err := os.ReadFile(opts.Config)
	must(t, err)
	want := strings.Replace(config, "three\n", "three\n"+importLine(opts.dropIn())+"\n", 1)
	if string(text) != want {
		t.Errorf("got\n%s, want\n%s", text, want)
	}
	if info, err := os.Stat(opts.Config); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = UninstallContainerd(t.Context(), opts)
	must(t, err)
	if text, err := os.ReadFile(opts.Config); err != nil || string(text) != config {
		t.Errorf("got back %q, %v", text, err)
	}
}

func TestContainerdBadOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*ContainerdOptions)
		err    string
	}{
		"relative directory": {func(o *ContainerdOptions) { o.Dir = "conf.d" }, "not an absolute path"},
		"pattern":            {func(o *ContainerdOptions) { o.Dir = "/etc/a*b" }, "mean something else"},
		"quote":              {func(o *ContainerdOptions) { o.Socket = "/run/a'b" }, "mean something else"},
		"plugin":             {func(o *ContainerdOptions) { o.Plugin = "/opt/a'; rm -rf /" }, "mean something else"},
		"relative hook":      {func(o *ContainerdOptions) { o.HookPath = "assay-hook" }, "not an absolute path"},
		"pattern exempt":     {func(o *ContainerdOptions) { o.Exempt = []string{"kube-*"} }, "no namespace's name"},
		"nothing exempt":     {func(o *ContainerdOptions) { o.Exempt = []string{""} }, "no namespace's name"},
		"no such handler":    {func(o *ContainerdOptions) { o.Handlers = []string{"runc", "crun"} }, `no runtime handler "crun" (it has runc)`},
		"no CRI":             {func(o *ContainerdOptions) { o.Containerd = "/bin/true" }, "no runtime handlers"},
		"fails":              {func(o *ContainerdOptions) { o.Containerd = "/bin/false" }, "exit status 1"},
		"no ctr":             {func(o *ContainerdOptions) { o.Ctr = "/nonexistent/ctr" }, "runtime handler runc: /nonexistent/ctr oci spec"},
		"open directory": {func(o *ContainerdOptions) {
			_ = errors.Join(os.Mkdir(o.Dir, 0o700), os.Chmod(o.Dir, 0o777))
		}, "changed by others"},
		"open plugin": {func(o *ContainerdOptions) {
			o.Plugin = filepath.Dir(o.HookPath) + "/assay"
			dump := dumped(3, "") + "[plugins.'" + nriPlugin + "']\nplugin_path = '" + o.Dir + "/nri'\n"
			_ = errors.Join(os.WriteFile(o.Plugin, []byte("#!"), 0o700), os.Chmod(o.Plugin, 0o777), os.WriteFile(filepath.Dir(o.Config)+"/dump", []byte(dump), 0o600))
		}, "changed by others"},
		"relative plugins": {func(o *ContainerdOptions) { o.Plugin = o.HookPath }, `plugin_path "" is not an absolute path`},
	} {
		t.Run(name, func(t *testing.T) {
			opts := node(t, plainConfig, dumped(3, ""))
			dir := opts.Dir
			tt.change(&opts)
			if _, err := Containerd(t.Context(), opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if found, err := filepath.Glob(dir + "/*"); err != nil || len(found) != 0 {
				t.Errorf("written: %q, %v", found, err)
			}
			opts.DryRun = true
			if _, err := Containerd(t.Context(), opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v of the dry run, want %q", err, tt.err)
			}
		})
	}
}

// Nothing but files of ours goes.
func TestUninstallContainerdForeign(t *testing.T) {
	opts := node(t, plainConfig, dumped(3, ""))
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	write(t, opts.Dir+"/zz-assay-theirs.json", `{"ociVersion":"1.1.0"}`, 0o644)
	write(t, opts.Dir+"/zz-assay.toml.bak", "", 0o644)
	_, err = UninstallContainerd(t.Context(), opts)
	must(t, err)
	found, err := filepath.Glob(opts.Dir + "/*")
	must(t, err)
	if want := []string{opts.Dir + "/zz-assay-theirs.json", opts.Dir + "/zz-assay.toml.bak"}; !slices.Equal(found, want) {
		t.Errorf("left %q, want %q", found, want)
	}
}

// Without containerd's program its files can still be taken away.
func TestUninstallContainerdAlone(t *testing.T) {
	opts := node(t, plainConfig, dumped(3, ""))
	_, err := Containerd(t.Context(), opts)
	must(t, err)
	must(t, os.Remove(opts.Containerd))
	must(t, os.Remove(opts.Config))
	_, err = UninstallContainerd(t.Context(), opts)
	must(t, err)
	if found, err := filepath.Glob(opts.Dir + "/*"); err != nil || len(found) != 0 {
		t.Errorf("left %q, %v", found, err)
	}
}
