package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bundles is the engine that runs OCI bundles with a runtime and nothing around
// it. The root filesystem is an overlay of the image's layers, mounted here.
type bundles struct {
	suite   *Suite
	runtime string
}

func (e *bundles) Name() string { return e.runtime }

func (e *bundles) Run(tb testing.TB, s Spec) Result {
	tb.Helper()
	b := e.prepare(tb, s)
	r := Command(tb, b.program, b.args("run", "--bundle", b.dir, b.id)...)
	b.Remove(tb)
	return r
}

func (e *bundles) Start(tb testing.TB, s Spec) Container {
	tb.Helper()
	b := e.prepare(tb, s)
	r := b.startDetached(tb)
	if r.Code != 0 {
		tb.Fatalf("%s run --detach: %s", e.runtime, r)
	}
	return b
}

// A bundle is one container of this engine.
type bundle struct {
	engine  *bundles
	program string // the runtime
	id      string
	dir     string // the OCI bundle
	merged  string // the overlay, until it is unmounted
}

// prepare mounts the root filesystem and writes config.json.
func (e *bundles) prepare(tb testing.TB, s Spec) *bundle {
	tb.Helper()
	b := &bundle{engine: e, program: e.suite.runtime(tb, e.runtime), id: e.suite.newID(), dir: e.suite.Scratch(tb)}
	tb.Cleanup(func() { b.cleanUp(tb) })
	b.mount(tb)
	b.configure(tb, s)
	return b
}

func (b *bundle) mount(tb testing.TB) {
	tb.Helper()
	var lower []string
	for _, dir := range b.engine.suite.Image(tb).Layers {
		lower = append([]string{dir}, lower...)
	}
	for _, name := range []string{"merged", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(b.dir, name), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", strings.Join(lower, ":"), b.dir, b.dir)
	merged := filepath.Join(b.dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		tb.Fatalf("mount the container's overlay (%s): %v", options, err)
	}
	b.merged = merged
}

func (b *bundle) configure(tb testing.TB, s Spec) {
	tb.Helper()
	spec := runtimeSpec(s)
	spec.Root = &specs.Root{Path: "merged", Readonly: s.ReadOnly}
	spec.Linux.CgroupsPath = "/" + b.engine.suite.cgroup + "/" + b.id
	if s.Gate != nil {
		hook := specs.Hook{Path: b.engine.suite.Bin("assay-hook"), Args: s.Gate.hookArgs()}
		spec.Hooks = &specs.Hooks{}
		if s.Gate.Stage == "prestart" {
			spec.Hooks.Prestart = []specs.Hook{hook} //nolint:staticcheck // deprecated and still what old runtimes run
		} else {
			spec.Hooks.CreateRuntime = []specs.Hook{hook}
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), text, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// args puts the runtime's own options before a command.
func (b *bundle) args(command ...string) []string {
	return append([]string{"--root", filepath.Join(b.engine.suite.dir, b.engine.runtime)}, command...)
}

// startDetached starts the container without waiting for it. Its output goes to
// a file, because a pipe would keep this side waiting.
func (b *bundle) startDetached(tb testing.TB) Result {
	tb.Helper()
	log := filepath.Join(b.dir, "output.log")
	script := `exec "$@" >"$LOG" 2>&1 </dev/null`
	args := append([]string{"-c", script, "sh", b.program}, b.args("run", "--detach", "--bundle", b.dir, b.id)...)
	r, err := run(tb.Context(), []string{"LOG=" + log}, "sh", args...)
	if err != nil {
		tb.Fatal(err)
	}
	said, err := os.ReadFile(log)
	if err != nil {
		tb.Fatal(err)
	}
	r.Stdout = string(said)
	return r
}

func (b *bundle) ID() string { return b.id }

func (b *bundle) PID(tb testing.TB) int {
	tb.Helper()
	state, err := b.state(tb)
	if err != nil {
		tb.Fatal(err)
	}
	return state.Pid
}

func (b *bundle) state(tb testing.TB) (specs.State, error) {
	tb.Helper()
	var state specs.State
	out, err := must(tb.Context(), nil, b.program, b.args("state", b.id)...)
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal([]byte(out), &state); err != nil {
		return state, fmt.Errorf("state of %s: %w", b.id, err)
	}
	return state, nil
}

func (b *bundle) Exec(tb testing.TB, args ...string) Result {
	tb.Helper()
	return Command(tb, b.program, b.args(append([]string{"exec", b.id}, args...)...)...)
}

func (b *bundle) Kill(tb testing.TB) {
	tb.Helper()
	if r := Command(tb, b.program, b.args("kill", b.id, "KILL")...); r.Code != 0 {
		tb.Fatalf("kill: %s", r)
	}
	Eventually(tb, "the container ends", func() error {
		state, err := b.state(tb)
		if err == nil && state.Status != specs.StateStopped {
			err = fmt.Errorf("container is %s", state.Status)
		}
		return err
	})
}

func (b *bundle) Remove(tb testing.TB) {
	tb.Helper()
	if r := Command(tb, b.program, b.args("delete", "--force", b.id)...); r.Code != 0 && !strings.Contains(r.Stderr, "does not exist") {
		tb.Errorf("delete: %s", r)
	}
	if b.merged == "" {
		return
	}
	if err := unix.Unmount(b.merged, 0); err != nil {
		tb.Errorf("the container is deleted, but its root filesystem cannot be unmounted at once: %v", err)
		return
	}
	b.merged = ""
}

// cleanUp removes what a failed test left: quietly, with force, in any state.
func (b *bundle) cleanUp(tb testing.TB) {
	tb.Helper()
	ctx, cancel := cleanupContext()
	defer cancel()
	if _, err := run(ctx, nil, b.program, b.args("delete", "--force", b.id)...); err != nil {
		tb.Errorf("delete: %v", err)
	}
	if b.merged == "" {
		return
	}
	if err := unix.Unmount(b.merged, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		tb.Errorf("unmount %s: %v", b.merged, err)
	}
}

// runtimeSpec returns the configuration of an ordinary container for s.
func runtimeSpec(s Spec) *specs.Spec {
	caps := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT",
	}
	if s.Privileged {
		caps = append(caps, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN", "CAP_SETFCAP")
	}
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: s.Args,
			Env:  []string{"PATH=/bin"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
		},
		Mounts: runtimeMounts(s),
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: s.Privileged, Access: "rwm"}},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
			},
		},
	}
}

func runtimeMounts(s Spec) []specs.Mount {
	quiet := []string{"nosuid", "noexec", "nodev"}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, quiet...)},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, quiet...)},
	}
	for _, b := range s.Binds {
		mounts = append(mounts, specs.Mount{Destination: b.Destination, Type: "bind", Source: b.Source, Options: []string{"rbind", "rw"}})
	}
	for _, destination := range s.Tmpfs {
		mounts = append(mounts, specs.Mount{Destination: destination, Type: "tmpfs", Source: "tmpfs"})
	}
	return mounts
}
