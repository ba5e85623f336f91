package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/assay-project/assay/internal/install"
)

// hookFile writes a hooks.d entry that calls program.
func hookFile(t *testing.T, dir, program, args, stages string) string {
	t.Helper()
	path := filepath.Join(dir, "assay.json")
	write(t, path, fmt.Sprintf(`{"version":"1.0.0","hook":{"path":%q,"args":[%s]},"when":{"always":true},"stages":[%s]}`, program, args, stages))
	return path
}

func TestReadHooks(t *testing.T) {
	const goodArgs, goodStages = `"assay-hook","createRuntime"`, `"createRuntime"`
	for name, tt := range map[string]struct {
		mode         os.FileMode
		owner        int
		args, stages string
		status       Status
		detail       string
	}{
		"good":              {0o755, 0, goodArgs, goodStages, OK, "calls"},
		"prestart":          {0o755, 0, goodArgs, `"prestart"`, OK, "calls"},
		"too late":          {0o755, 0, goodArgs, `"poststart"`, Fail, "in time"},
		"no stages":         {0o755, 0, goodArgs, "", Fail, "in time"},
		"not executable":    {0o644, 0, goodArgs, goodStages, Fail, "not a program"},
		"writable by all":   {0o757, 0, goodArgs, goodStages, Fail, "others than root"},
		"writable by group": {0o775, 0, goodArgs, goodStages, Fail, "others than root"},
		"not root's":        {0o755, 65534, goodArgs, goodStages, Fail, "others than root"},
		"allow":             {0o755, 0, `"assay-hook","--on-agent-missing","allow","createRuntime"`, goodStages, Warn, "unguarded"},
		"allow, joined":     {0o755, 0, `"assay-hook","--on-agent-missing=allow","createRuntime"`, goodStages, Warn, "unguarded"},
		"fail":              {0o755, 0, `"assay-hook","--on-agent-missing","fail","createRuntime"`, goodStages, OK, "calls"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, program := t.TempDir(), filepath.Join(t.TempDir(), hookCommand)
			write(t, program, "#!/bin/true\n")
			if err := os.Chmod(program, tt.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(program, tt.owner, -1); err != nil {
				t.Fatal(err)
			}
			file := hookFile(t, dir, program, tt.args, tt.stages)
			r := readHooks([]string{dir})
			if len(r.entries) != 1 {
				t.Fatalf("found %d entries, want 1", len(r.entries))
			}
			want(t, find(t, r.checks, AreaHooks, file), tt.status, tt.detail, "")
		})
	}
}

func TestReadHooksWithoutItsProgram(t *testing.T) {
	dir := t.TempDir()
	const missing = "/nonexistent/assay-hook"
	file := hookFile(t, dir, missing, `"assay-hook"`, `"createRuntime"`)
	want(t, find(t, readHooks([]string{dir}).checks, AreaHooks, file), Fail, "start unguarded", "0755")
	file = hookFile(t, dir, "/usr/bin/env", `"env","`+missing+`"`, `"createRuntime"`)
	want(t, find(t, readHooks([]string{dir}).checks, AreaHooks, file), Fail, "no container can start", "0755")
}

func TestReadHooksAsInstalled(t *testing.T) {
	dir, program := t.TempDir(), filepath.Join(t.TempDir(), "renamed-hook")
	write(t, program, "#!/bin/true\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	for action, status := range map[string]Status{"fail": OK, "allow": Warn} {
		r, err := install.Podman(install.PodmanOptions{HooksDir: dir, HookPath: program, OnAgentMissing: action})
		if err != nil {
			t.Fatal(err)
		}
		want(t, find(t, readHooks([]string{dir}).checks, AreaHooks, r.Path), status, "calls "+program, "")
	}
}

func TestReadHooksIgnoresOthers(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "other.json"), `{"version":"1.0.0","hook":{"path":"/usr/bin/nvidia-hook"}}`)
	write(t, filepath.Join(dir, "broken.json"), `{"hook":`)
	write(t, filepath.Join(dir, "assay.json.bak"), `{"hook":{"path":"/x/assay-hook"}}`)
	r := readHooks([]string{dir, filepath.Join(dir, "missing")})
	if len(r.entries) != 0 || len(r.checks) != 1 {
		t.Fatalf("found %+v", r)
	}
	want(t, find(t, r.checks, AreaHooks, "podman"), Warn, "no hook in "+dir, "assay install podman")
}
