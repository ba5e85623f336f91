package install

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/hook"
)

// The tests run as root, like what they test: everything is about what belongs
// to root. nobody is somebody else.
const nobody = 65534

// host makes a directory that can stand for a host's, with a hook in it.
func host(t *testing.T) PodmanOptions {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/bin/assay-hook", "#!", 0o755)
	return PodmanOptions{HooksDir: root + "/etc/hooks.d", HookPath: root + "/bin/assay-hook"}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o600))
	must(t, os.Chmod(path, mode))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPodman(t *testing.T) {
	opts := host(t)
	opts.Namespace = "ci-<1>"
	first, err := Podman(opts)
	must(t, err)
	if !first.Changed || first.Path != opts.HooksDir+"/zz-assay.json" {
		t.Fatalf("got %+v", first)
	}
	data, err := os.ReadFile(first.Path)
	must(t, err)
	if string(data) != string(first.Content) {
		t.Fatalf("the file holds %q, the result %q", data, first.Content)
	}
	// Read back as podman does, into plain maps.
	var got, want map[string]any
	must(t, json.Unmarshal(data, &got))
	must(t, json.Unmarshal([]byte(`{
		"version": "1.0.0",
		"hook": {
			"path": "/usr/bin/env",
			"args": ["env", "`+opts.HookPath+`", "--socket", "/run/assay/agent.sock", "--timeout", "30s", "--on-agent-missing", "fail",
				"--namespace", "ci-<1>", "createRuntime"],
			"env": ["ASSAY_INSTALLED=podman"],
			"timeout": 40
		},
		"when": {"always": true},
		"stages": ["createRuntime"]
	}`), &want))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
	if info, err := os.Stat(first.Path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(opts.HooksDir); err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}

	again, err := Podman(opts)
	if err != nil || again.Changed || string(again.Content) != string(data) {
		t.Errorf("the second time: %+v, %v", again, err)
	}
}

func TestPodmanOtherOptions(t *testing.T) {
	opts := host(t)
	_, err := Podman(opts)
	must(t, err)
	opts.Socket, opts.OnAgentMissing, opts.Stage, opts.Timeout = "/run/other.sock", "allow", hook.Prestart, 1500*time.Millisecond
	r, err := Podman(opts)
	if err != nil || !r.Changed {
		t.Fatalf("got %+v, %v", r, err)
	}
	var e entry
	must(t, json.Unmarshal(r.Content, &e))
	want := []string{"env", opts.HookPath, "--socket", "/run/other.sock", "--timeout", "1.5s", "--on-agent-missing", "allow", "prestart"}
	if !reflect.DeepEqual(e.Hook.Args, want) || !reflect.DeepEqual(e.Stages, []string{"prestart"}) || *e.Hook.Timeout != 11 {
		t.Fatalf("got %s", r.Content)
	}
	// Even of a hook that would wait first and then begin to count.
	if limit := time.Duration(*e.Hook.Timeout) * time.Second; limit <= opts.Timeout+hook.DefaultWait {
		t.Errorf("the runtime ends the hook after %v", limit)
	}
}

func TestPodmanDryRun(t *testing.T) {
	opts := host(t)
	opts.DryRun = true
	r, err := Podman(opts)
	if err != nil || !r.Changed || len(r.Content) == 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := os.Stat(opts.HooksDir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory was made: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	o := PodmanOptions{HookPath: "/usr//bin/assay-hook"}.withDefaults()
	if o.HooksDir != "/usr/share/containers/oci/hooks.d" || o.Socket != hook.DefaultSocket || o.HookPath != "/usr/bin/assay-hook" {
		t.Fatalf("got %+v", o)
	}
}

func TestPodmanBadOptions(t *testing.T) {
	tests := map[string]struct {
		change func(*PodmanOptions)
		err    string
	}{
		"relative directory": {func(o *PodmanOptions) { o.HooksDir = "hooks.d" }, `hooks directory "hooks.d" is not an absolute path`},
		"relative hook":      {func(o *PodmanOptions) { o.HookPath = "assay-hook" }, `hook "assay-hook" is not an absolute path`},
		"no hook":            {func(o *PodmanOptions) { o.HookPath = "" }, `hook "." is not an absolute path`},
		"hook with =":        {func(o *PodmanOptions) { o.HookPath = "/opt/a=b/assay-hook" }, "has a ="},
		"relative socket":    {func(o *PodmanOptions) { o.Socket = "agent.sock" }, `socket "agent.sock" is not an absolute path`},
		"long socket":        {func(o *PodmanOptions) { o.Socket = "/" + strings.Repeat("x", hook.MaxSocket) }, "longer than 107 bytes"},
		"namespace":          {func(o *PodmanOptions) { o.Namespace = "a\nb" }, "control characters"},
		"on agent missing":   {func(o *PodmanOptions) { o.OnAgentMissing = "ignore" }, "fail or allow"},
		"stage":              {func(o *PodmanOptions) { o.Stage = "poststart" }, "already running"},
		"timeout":            {func(o *PodmanOptions) { o.Timeout = -1 }, "negative"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			opts := host(t)
			tt.change(&opts)
			if _, err := Podman(opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
		})
	}
}

// Nobody but root may be able to change what podman will start as root.
func TestPodmanUnsafe(t *testing.T) {
	tests := map[string]struct {
		change func(t *testing.T, o *PodmanOptions)
		err    string
	}{
		"hook missing":        {func(t *testing.T, o *PodmanOptions) { t.Helper(); must(t, os.Remove(o.HookPath)) }, "no such file"},
		"hook not executable": {func(t *testing.T, o *PodmanOptions) { t.Helper(); must(t, os.Chmod(o.HookPath, 0o644)) }, "is not executable"},
		"hook a directory":    {func(t *testing.T, o *PodmanOptions) { t.Helper(); o.HookPath = filepath.Dir(o.HookPath) }, "not a regular file"},
		"hook of the group":   {func(t *testing.T, o *PodmanOptions) { t.Helper(); must(t, os.Chmod(o.HookPath, 0o775)) }, "changed by others"},
		"hook of everybody":   {func(t *testing.T, o *PodmanOptions) { t.Helper(); must(t, os.Chmod(o.HookPath, 0o757)) }, "changed by others"},
		"hook of a user":      {func(t *testing.T, o *PodmanOptions) { t.Helper(); must(t, os.Chown(o.HookPath, nobody, 0)) }, "does not belong to root"},
		"hook in a user's directory": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.Chown(filepath.Dir(o.HookPath), nobody, 0))
		}, "does not belong to root"},
		"hook in an open directory": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.Chmod(filepath.Dir(o.HookPath), 0o777))
		}, "changed by others"},
		"hook behind a user's link": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			link := filepath.Dir(o.HooksDir) + "/link"
			must(t, os.MkdirAll(filepath.Dir(link), 0o755))
			must(t, os.Symlink(o.HookPath, link))
			must(t, os.Lchown(link, nobody, 0))
			o.HookPath = link
		}, "does not belong to root"},
		"hook behind a link in a user's directory": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			link := o.HooksDir + "/../home/link"
			must(t, os.MkdirAll(filepath.Dir(filepath.Clean(link)), 0o755))
			must(t, os.Symlink(o.HookPath, filepath.Clean(link)))
			must(t, os.Chown(filepath.Dir(filepath.Clean(link)), nobody, 0))
			o.HookPath = link
		}, "does not belong to root"},
		"hook behind a circle of links": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.Remove(o.HookPath))
			must(t, os.Symlink("assay-hook", o.HookPath))
		}, "too many symbolic links"},
		"directory of a user": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.MkdirAll(o.HooksDir, 0o755))
			must(t, os.Chown(o.HooksDir, nobody, 0))
		}, "does not belong to root"},
		"directory of everybody": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.MkdirAll(o.HooksDir, 0o755))
			must(t, os.Chmod(o.HooksDir, 0o777|os.ModeSticky))
		}, "changed by others"},
		"directory to be made in a user's": {func(t *testing.T, o *PodmanOptions) {
			t.Helper()
			must(t, os.MkdirAll(filepath.Dir(o.HooksDir), 0o755))
			must(t, os.Chown(filepath.Dir(o.HooksDir), nobody, 0))
		}, "does not belong to root"},
		"directory is a file": {func(t *testing.T, o *PodmanOptions) { t.Helper(); write(t, o.HooksDir, "", 0o644) }, "not a directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			opts := host(t)
			tt.change(t, &opts)
			if _, err := Podman(opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if _, err := os.Lstat(opts.HooksDir + "/" + HooksFile); err == nil {
				t.Fatal("the entry was written")
			}
			opts.DryRun = true
			if _, err := Podman(opts); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v of the dry run, want %q", err, tt.err)
			}
		})
	}
}

func TestPodmanThroughRootsLinks(t *testing.T) {
	opts := host(t)
	dir := filepath.Dir(opts.HookPath)
	must(t, os.Symlink("bin", dir+"/../sbin"))
	must(t, os.Symlink("../bin/./assay-hook", dir+"/relative"))
	must(t, os.Symlink(filepath.Dir(dir)+"/sbin/relative", dir+"/absolute"))
	opts.HookPath = dir + "/absolute"
	r, err := Podman(opts)
	must(t, err)
	if !strings.Contains(string(r.Content), `"`+opts.HookPath+`"`) {
		t.Fatalf("got %s", r.Content)
	}
}

// foreign are files that are none of ours, unlike own.
func foreign(opts PodmanOptions, own []byte) map[string]string {
	return map[string]string{
		"other hook":     `{"version":"1.0.0","hook":{"path":"/bin/true","args":["true"]},"when":{"always":true},"stages":["prestart"]}`,
		"without marker": `{"version":"1.0.0","hook":{"path":"` + envPath + `","args":["env","` + opts.HookPath + `"]},"when":{"always":true},"stages":["prestart"]}`,
		"edited by hand": `{"version":"1.0.0","hook":{"path":"/x","env":["` + markerKey + `podman"]},"when":{"commands":["^/x$"]},"stages":["prestart"]}`,
		"not JSON":       "hello",
		"empty":          "",
		"very long":      string(own) + strings.Repeat(" ", maxOwn),
	}
}

func TestForeign(t *testing.T) {
	opts := host(t)
	own, err := Podman(opts)
	must(t, err)
	path := own.Path
	for name, text := range foreign(opts, own.Content) {
		write(t, path, text, 0o644)
		for what, do := range map[string]func(PodmanOptions) (Result, error){"install": Podman, "uninstall": UninstallPodman} {
			if r, err := do(opts); !errors.Is(err, ErrForeign) || r.Changed {
				t.Errorf("%s over %s: %+v, %v", what, name, r, err)
			}
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != text {
			t.Errorf("%s was changed to %q, %v", name, data, err)
		}
	}
	must(t, os.Remove(path))
	write(t, opts.HooksDir+"/elsewhere", string(own.Content), 0o644)
	must(t, os.Symlink("elsewhere", path))
	if _, err := Podman(opts); !errors.Is(err, ErrForeign) {
		t.Errorf("a link: %v", err)
	}
}

func TestUninstallPodman(t *testing.T) {
	opts := host(t)
	if r, err := UninstallPodman(opts); err != nil || r.Changed {
		t.Fatalf("with nothing there: %+v, %v", r, err)
	}
	installed, err := Podman(opts)
	must(t, err)

	dry := opts
	dry.DryRun = true
	if r, err := UninstallPodman(dry); err != nil || !r.Changed {
		t.Fatalf("dry run: %+v, %v", r, err)
	}
	if _, err := os.Stat(installed.Path); err != nil {
		t.Fatalf("the dry run removed it: %v", err)
	}

	r, err := UninstallPodman(PodmanOptions{HooksDir: opts.HooksDir})
	if err != nil || !r.Changed || r.Path != installed.Path || r.Content != nil {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := os.Lstat(installed.Path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("still there: %v", err)
	}
	if r, err := UninstallPodman(opts); err != nil || r.Changed {
		t.Fatalf("the second time: %+v, %v", r, err)
	}
	if _, err := UninstallPodman(PodmanOptions{HooksDir: "hooks.d"}); err == nil {
		t.Error("accepted a relative directory")
	}
}

// A write that fails leaves neither the entry nor a temporary file.
func TestReplaceFileFails(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/taken/x", 0o755))
	if err := replaceFile(dir+"/taken", []byte("text"), 0o644); err == nil {
		t.Fatal("replaced a directory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}
