package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// containerdNode puts a containerd on PATH that prints the dump of one handler with a
// base specification, and returns the examination's options and the specification.
func containerdNode(t *testing.T, shim string) (o *Options, spec string) {
	t.Helper()
	dir := t.TempDir()
	spec = filepath.Join(dir, "base.json")
	write(t, filepath.Join(dir, "config.toml"), "version = 3\n")
	dump := fmt.Sprintf("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.h]\nruntime_type = '%s'\nbase_runtime_spec = '%s'\n", shim, spec)
	write(t, filepath.Join(dir, "containerd"), "#!/bin/sh\ncat <<END\n"+dump+"END\n")
	if err := os.Chmod(filepath.Join(dir, "containerd"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return &Options{ContainerdConfig: filepath.Join(dir, "config.toml"), Timeout: time.Minute}, spec
}

const runc = "io.containerd.runc.v2"

func TestContainerdHooks(t *testing.T) {
	const hooked = `{"ociVersion":"1.1.0","hooks":{"createRuntime":[{"path":"%s","args":["x"],"env":["ASSAY_INSTALLED=containerd"]}]}}`
	for name, tt := range map[string]struct {
		shim, spec string
		status     Status
		detail     string
		remedy     string
		installed  bool
	}{
		"hook":        {runc, fmt.Sprintf(hooked, "/bin/true"), OK, "calls /bin/true", "", true},
		"lost hook":   {runc, fmt.Sprintf(hooked, "/nonexistent/hook"), Fail, "no container can start", "then run assay install containerd", true},
		"no hook":     {runc, `{"ociVersion":"1.1.0"}`, Warn, "without the hook", "assay install containerd", false},
		"another's":   {runc, `{"hooks":{"createRuntime":[{"path":"/bin/true"}]}}`, Warn, "without the hook", "assay install containerd", false},
		"broken":      {runc, `{`, Fail, "containerd cannot start with it", "assay install containerd", false},
		"not of ours": {"io.containerd.kata.v2", `{}`, Warn, "nothing guards them", "RuntimeClass", false},
	} {
		t.Run(name, func(t *testing.T) {
			o, spec := containerdNode(t, tt.shim)
			write(t, spec, tt.spec)
			checks, installed := containerdHooks(t.Context(), o)
			if len(checks) != 1 || installed != tt.installed {
				t.Fatalf("found %+v, installed %v", checks, installed)
			}
			want(t, find(t, checks, AreaHooks, "containerd handler h"), tt.status, tt.detail, tt.remedy)
		})
	}
}

func TestContainerdHooksUnknown(t *testing.T) {
	o, _ := containerdNode(t, runc)
	write(t, o.ContainerdConfig, "version = \n")
	checks, _ := containerdHooks(t.Context(), o)
	want(t, find(t, checks, AreaHooks, "containerd"), Unknown, "line 1", "by hand")

	o.ContainerdConfig += ".none"
	if checks, installed := containerdHooks(t.Context(), o); checks != nil || installed {
		t.Errorf("without a configuration: %+v", checks)
	}
	o, _ = containerdNode(t, runc)
	t.Setenv("PATH", t.TempDir())
	if checks, installed := containerdHooks(t.Context(), o); checks != nil || installed {
		t.Errorf("without containerd: %+v", checks)
	}
}
