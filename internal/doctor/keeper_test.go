package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/tenant"
)

// A keptNode is a machine with an agent (pid 10) and a keeper (pid 20), each in a
// service of its own.
type keptNode struct {
	*node

	agent *agentReport
	held  *keeperReport
	bin   string // directory of the agent's program
}

func newKeptNode(t *testing.T) *keptNode {
	t.Helper()
	n := &keptNode{
		node: fakeNode(t), bin: t.TempDir(),
		agent: &agentReport{pid: 10, containers: 3, version: "7"},
		held:  &keeperReport{Status: &keeper.Status{Version: "7"}, pid: 20},
	}
	for pid, service := range map[int]string{10: "assayd", 20: keeperProgram} {
		writeProcess(t, n.proc, strconv.Itoa(pid), rootUser, allCaps, plenty, hostMap)
		write(t, filepath.Join(n.proc, strconv.Itoa(pid), "cgroup"), "0::/system.slice/"+service+".service\n")
	}
	if err := os.Symlink(filepath.Join(n.bin, "assayd"), filepath.Join(n.proc, "10/exe")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(n.bin, keeperProgram), "")
	if err := os.Chmod(filepath.Join(n.bin, keeperProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	n.askKeeper = func(context.Context, string) (*keeperReport, error) {
		if n.held == nil {
			return nil, unix.ENOENT
		}
		return n.held, nil
	}
	return n
}

// check returns the check called name, which may be the end of a path.
func (n *keptNode) check(t *testing.T, o *Options, name string) Check {
	t.Helper()
	checks := n.keepers(t.Context(), o, n.agent, &process{files: 1000})
	for _, c := range checks {
		if c.Area == AreaKeeper && strings.HasSuffix(c.Name, name) {
			return c
		}
	}
	t.Fatalf("no check %q among %+v", name, checks)
	return Check{}
}

func TestKeeper(t *testing.T) {
	n, o := newKeptNode(t), fakeOptions(t)
	for _, name := range []string{keeperProgram, "keeper.sock", "version", "service", "RLIMIT_NOFILE"} {
		want(t, n.check(t, o, name), OK, "", "")
	}

	n.held.Version = "6"
	want(t, n.check(t, o, "version"), OK, "6, the agent's is 7", "")
	write(t, filepath.Join(n.proc, "20/cgroup"), "0::/system.slice/assayd.service\n")
	want(t, n.check(t, o, "service"), Warn, "in the agent's own service (assayd.service)", "kill 20")
	for _, pid := range []string{"10", "20"} { // a terminal
		write(t, filepath.Join(n.proc, pid, "cgroup"), "0::/user.slice/session-1.scope\n")
	}
	want(t, n.check(t, o, "service"), OK, "session-1.scope", "")
	for _, pid := range []string{"10", "20"} {
		write(t, filepath.Join(n.proc, pid, "cgroup"), "5:pids:/x\n1:name=systemd:/system.slice/assayd.service\n0::/\n")
	}
	want(t, n.check(t, o, "service"), Warn, "assayd.service", "assay-keeper")
	write(t, filepath.Join(n.proc, "20/cgroup"), "")
	want(t, n.check(t, o, "service"), Unknown, "names no cgroup", runAsRoot)

	writeProcess(t, n.proc, "20", rootUser, allCaps, "500", hostMap)
	want(t, n.check(t, o, "RLIMIT_NOFILE"), Warn, "500 for the keeper (pid 20)", "LimitNOFILE=1024")
}

func TestKeeperBinary(t *testing.T) {
	n, o := newKeptNode(t), fakeOptions(t)
	path := filepath.Join(n.bin, keeperProgram)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	want(t, n.check(t, o, keeperProgram), Warn, "no program that can be executed", "make install")
	n.held = nil
	want(t, n.check(t, o, keeperProgram), Fail, path, "make install")
	n.agent = nil
	want(t, n.check(t, o, keeperProgram), Unknown, "this program", "")
}

func TestKeeperIsMissing(t *testing.T) {
	n, o := newKeptNode(t), fakeOptions(t)
	n.held = nil
	want(t, n.check(t, o, "keeper.sock"), Fail, "would be unguarded", "systemctl status assay-keeper")
	n.agent = nil
	want(t, n.check(t, o, "keeper.sock"), Unknown, "no agent", "start the agent")
	n.askKeeper = func(context.Context, string) (*keeperReport, error) { return nil, unix.EACCES }
	want(t, n.check(t, o, "keeper.sock"), Unknown, "only root", runAsRoot)
}

func TestKeeperBackends(t *testing.T) {
	n, o := newKeptNode(t), fakeOptions(t)
	o.Config.Keeper.Backend = tenant.KeeperOff
	want(t, n.check(t, o, "keeper.backend"), Warn, "unguarded", "set keeper.backend to process")
	o.Config.Keeper.Backend = tenant.KeeperSystemd
	want(t, n.check(t, o, "keeper.backend"), OK, "systemd", "")
}

func TestKeeperSocket(t *testing.T) {
	o := fakeOptions(t)
	if got, beside := keeperSocket(o), filepath.Join(filepath.Dir(o.Socket), "keeper.sock"); got != beside {
		t.Errorf("beside an agent's socket that was given: %s, want %s", got, beside)
	}
	o.Config.Keeper.Socket = "/run/elsewhere.sock"
	if got := keeperSocket(o); got != "/run/elsewhere.sock" {
		t.Errorf("the configured one: %s", got)
	}
}

// TestKernelFeaturesOfRooms: what is tried can be tried, and names what is lost without
// it. Not all of it is there everywhere.
func TestKernelFeaturesOfRooms(t *testing.T) {
	for _, f := range features() {
		if err := f.Probe(); err != nil && (f.Required || !errors.Is(err, fanotify.ErrNotSupported)) {
			t.Errorf("%s: %v", f.Name, err)
		}
		if f.Name == "" || f.Since == "" || f.Without == "" || f.Remedy == "" {
			t.Errorf("incomplete feature %+v", f)
		}
	}
}
