package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// podman is a podman with storage, run directory and configuration of its own.
type podman struct {
	suite   *Suite
	env     []string // CONTAINERS_CONF
	options []string // global options before every command
	image   string   // id of the test image
}

// setUpPodman configures podman and pulls the test image into its storage.
func (s *Suite) setUpPodman() (*podman, error) {
	img, err := s.image()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, "podman")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("podman: %w", err)
	}
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte(podmanConf()), 0o600); err != nil {
		return nil, fmt.Errorf("podman: %w", err)
	}
	p := &podman{suite: s, env: []string{"CONTAINERS_CONF=" + conf}, options: []string{
		"--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}}
	if p.image, err = p.pull(context.Background(), img.Layout); err != nil {
		return nil, err
	}
	return p, nil
}

// pull copies the image "test" of a layout into the storage and returns its id. The
// layout goes by a relative path: podman makes a name of it, and names have no
// capital letters.
func (p *podman) pull(ctx context.Context, layout string) (string, error) {
	pull := append([]string{"-c", `cd "$0" && exec podman "$@"`, filepath.Dir(layout)},
		p.args("pull", "-q", "oci:"+filepath.Base(layout)+":test")...)
	id, err := must(ctx, p.env, "sh", pull...)
	return strings.TrimSpace(id), err
}

// podmanConf keeps podman away from the network and within limits that this
// process may set: without CAP_SYS_RESOURCE podman's own defaults are too high, and
// podman lowers its hard limit of processes before it starts a runtime.
func podmanConf() string {
	nofile, nproc := hardLimit(unix.RLIMIT_NOFILE, 20000), hardLimit(unix.RLIMIT_NPROC, 4096)
	return fmt.Sprintf("[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=%d:%d\", \"nproc=%d:%d\"]\n",
		nofile, nofile, nproc, nproc)
}

// hardLimit returns this process's hard limit of a resource, but not more than atMost.
func hardLimit(resource int, atMost uint64) uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(resource, &limit); err != nil {
		return atMost
	}
	return min(limit.Max, atMost)
}

func (p *podman) args(command ...string) []string {
	return append(append([]string{}, p.options...), command...)
}

// Podman returns the engine that runs containers with podman over a runtime.
func (s *Suite) Podman(runtime string) Engine { return &podmanEngine{suite: s, runtime: runtime} }

type podmanEngine struct {
	suite   *Suite
	runtime string
}

func (e *podmanEngine) Name() string { return "podman-" + e.runtime }

func (e *podmanEngine) Run(tb testing.TB, s Spec) Result {
	tb.Helper()
	c := e.newContainer(tb)
	defer c.Remove(tb)
	return c.run(tb, s)
}

func (e *podmanEngine) Start(tb testing.TB, s Spec) Container {
	tb.Helper()
	c := e.newContainer(tb)
	r := c.run(tb, s, "--detach")
	if r.Code != 0 {
		tb.Fatalf("podman run --detach: %s", r)
	}
	c.id = strings.TrimSpace(r.Stdout)
	return c
}

// A podmanContainer is one container of this engine.
type podmanContainer struct {
	*podman
	runtime string
	name    string
	id      string
	hooks   string // hooks directory; "" for none
}

func (e *podmanEngine) newContainer(tb testing.TB) *podmanContainer {
	tb.Helper()
	_, err := must(context.Background(), nil, "podman", "--version")
	Require(tb, "podman", err)
	runtime := e.suite.runtime(tb, e.runtime)
	p, err := e.suite.podman()
	if err != nil {
		tb.Fatal(err)
	}
	c := &podmanContainer{podman: p, runtime: runtime, name: e.suite.newID()}
	tb.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		if _, err := run(ctx, p.env, "podman", c.command("rm", "--force", "--ignore", "--time", "0", c.name)...); err != nil {
			tb.Errorf("podman rm: %v", err)
		}
	})
	return c
}

// command puts the container's global options before a podman command.
func (c *podmanContainer) command(command ...string) []string {
	options := []string{"--runtime", c.runtime}
	if c.hooks != "" {
		options = append(options, "--hooks-dir", c.hooks)
	}
	return c.args(append(options, command...)...)
}

// run runs the container of s with further options of `podman run`.
func (c *podmanContainer) run(tb testing.TB, s Spec, options ...string) Result {
	tb.Helper()
	if s.Gate != nil {
		c.hooks = c.suite.InstallHook(tb, s.Gate)
	}
	args := append([]string{"run", "--name", c.name, "--cgroup-parent", "/" + c.suite.cgroup, "--network", "none"}, options...)
	for _, b := range s.Binds {
		args = append(args, "--volume", b.Source+":"+b.Destination)
	}
	for _, destination := range s.Tmpfs {
		args = append(args, "--tmpfs", destination)
	}
	if s.Privileged {
		args = append(args, "--privileged")
	}
	if s.ReadOnly {
		args = append(args, "--read-only", "--read-only-tmpfs=false")
	}
	image := c.image
	if s.Image != "" {
		image = s.Image
	}
	args = append(args, "--entrypoint", s.Args[0], image)
	return c.podmanCommand(tb, append(args, s.Args[1:]...)...)
}

func (c *podmanContainer) podmanCommand(tb testing.TB, command ...string) Result {
	tb.Helper()
	r, err := run(tb.Context(), c.env, "podman", c.command(command...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func (c *podmanContainer) ID() string { return c.id }

func (c *podmanContainer) PID(tb testing.TB) int {
	tb.Helper()
	r := c.podmanCommand(tb, "inspect", "--format", "{{.State.Pid}}", c.name)
	pid, err := strconv.Atoi(strings.TrimSpace(r.Stdout))
	if err != nil {
		tb.Fatalf("podman inspect: %s", r)
	}
	return pid
}

func (c *podmanContainer) Exec(tb testing.TB, args ...string) Result {
	tb.Helper()
	return c.podmanCommand(tb, append([]string{"exec", c.name}, args...)...)
}

func (c *podmanContainer) Kill(tb testing.TB) {
	tb.Helper()
	if r := c.podmanCommand(tb, "kill", c.name); r.Code != 0 {
		tb.Fatalf("podman kill: %s", r)
	}
	if r := c.podmanCommand(tb, "wait", c.name); r.Code != 0 {
		tb.Fatalf("podman wait: %s", r)
	}
}

func (c *podmanContainer) Remove(tb testing.TB) {
	tb.Helper()
	if r := c.podmanCommand(tb, "rm", "--force", "--ignore", "--time", "0", c.name); r.Code != 0 {
		tb.Errorf("podman rm: %s", r)
	}
}

// InstallHook lets the product write its hooks.d entry into a new directory.
func (s *Suite) InstallHook(tb testing.TB, g *Gate) string {
	tb.Helper()
	dir := s.Scratch(tb)
	args := []string{"--socket", g.Socket, "install", "podman", "--hooks-dir", dir}
	if g.Namespace != "" {
		args = append(args, "--namespace", g.Namespace)
	}
	if g.OnAgentMissing != "" {
		args = append(args, "--on-agent-missing", g.OnAgentMissing)
	}
	if r := Command(tb, s.Bin("assay"), args...); r.Code != 0 {
		tb.Fatalf("assay install podman: %s", r)
	}
	if g.Wait != "" {
		setWait(tb, filepath.Join(dir, "zz-assay.json"), g.Wait)
	}
	return dir
}

// setWait edits an entry as an operator may: what the product writes leaves the
// default.
func setWait(tb testing.TB, file, wait string) {
	tb.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	const before = `"--timeout",`
	edited := strings.Replace(string(text), before, `"--wait", "`+wait+`", `+before, 1)
	if edited == string(text) {
		tb.Fatalf("%s has no %s:\n%s", file, before, text)
	}
	if err := os.WriteFile(file, []byte(edited), 0o644); err != nil { //nolint:gosec // as the product writes it
		tb.Fatal(err)
	}
}
