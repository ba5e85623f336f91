package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/tenant"
)

// keeperProgram is beside the agent's program, which starts it if none is there.
const keeperProgram = "assay-keeper"

const (
	// keeperAtRest are descriptors of a keeper that holds nothing, and filesPerKept what
	// it has for each container: two groups, its pidfd, and as many on their way to the
	// next agent.
	keeperAtRest = 64
	filesPerKept = 6
	// markShare is the part of its descriptors that the agent uses for leases under
	// kernel marks: one in so many. The keeper has a copy of each.
	markShare = 4
	// maxMarkFiles bounds the descriptors that the agent shares out.
	maxMarkFiles = 1 << 20
)

// A keeperReport is what the keeper says, and what the kernel says of it.
type keeperReport struct {
	*keeper.Status

	pid int // in this process's pid namespace
}

// askKeeper asks the keeper at a socket how it is.
func askKeeper(ctx context.Context, socket string) (*keeperReport, error) {
	c, err := keeper.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	return &keeperReport{Status: st, pid: c.PID()}, nil
}

// keepers examines what holds the containers while the agent is away.
func (n *node) keepers(ctx context.Context, o *Options, agent *agentReport, subject *process) []Check {
	switch o.Config.Keeper.Backend {
	case tenant.KeeperOff:
		return []Check{{
			Area: AreaKeeper, Name: "keeper.backend", Status: Warn,
			Detail: "off: whenever the agent is away, the containers that run are unguarded, and what they open meanwhile is not scanned",
			Remedy: "set keeper.backend to process",
		}}
	case tenant.KeeperSystemd:
		return []Check{{
			Area: AreaKeeper, Name: "keeper.backend", Status: OK,
			Detail: "systemd: opens wait for as long as the agent is away, since nobody answers by onAgentGone",
		}}
	case tenant.KeeperProcess:
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	socket := keeperSocket(o)
	held, err := n.askKeeper(ctx, socket)
	checks := []Check{n.keeperBinary(agent, held != nil), reachable(socket, held, err, agent != nil)}
	if held == nil {
		return checks
	}
	if agent != nil && agent.version != "" {
		checks = append(checks, keeperVersion(held, agent))
	}
	if agent != nil && agent.pid > 0 {
		checks = append(checks, n.separate(agent.pid, held.pid))
	}
	return append(checks, n.keeperFiles(o, agent, subject, held))
}

// keeperSocket is the keeper's socket. Where the agent's was given by hand, it is beside
// that one, as the agent would have it.
func keeperSocket(o *Options) string {
	beside := filepath.Join(filepath.Dir(o.Config.Socket), "keeper.sock")
	if o.Config.Keeper.Socket == beside {
		return filepath.Join(filepath.Dir(o.Socket), "keeper.sock")
	}
	return o.Config.Keeper.Socket
}

// keeperBinary looks for the program that the agent starts.
func (n *node) keeperBinary(agent *agentReport, running bool) Check {
	self, whose := n.proc+"/self/exe", "this program"
	if agent != nil && agent.pid > 0 {
		self, whose = fmt.Sprintf("%s/%d/exe", n.proc, agent.pid), "the agent"
	}
	check := Check{Area: AreaKeeper, Name: keeperProgram}
	exe, err := os.Readlink(self)
	if err != nil {
		check.Status, check.Detail, check.Remedy = Unknown, fmt.Sprintf("where %s is could not be read: %v", whose, err), runAsRoot
		return check
	}
	path := filepath.Join(filepath.Dir(exe), keeperProgram)
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0:
		check.Status, check.Detail = OK, path
		return check
	case err == nil:
		err = errors.New("it is no program that can be executed")
	}
	check.Detail = fmt.Sprintf("%s, beside %s: %v", path, whose, err)
	check.Remedy = "install assay-keeper into the directory of assayd (make install)"
	check.Status = Fail
	switch {
	case agent == nil:
		check.Status = Unknown // the agent may be elsewhere
	case running:
		check.Status = Warn // one is there: started by systemd, or before
		check.Detail += "; if the one that runs ended, the agent could not start another"
	}
	return check
}

// reachable tells whether there is a keeper.
func reachable(socket string, held *keeperReport, err error, agent bool) Check {
	check := Check{Area: AreaKeeper, Name: socket}
	switch {
	case held != nil:
		check.Status = OK
		check.Detail = fmt.Sprintf("answers: version %s, pid %d, entries %d", held.Version, held.pid, len(held.Entries))
	case errors.Is(err, fs.ErrPermission):
		check.Status, check.Detail, check.Remedy = Unknown, "only root may use it", runAsRoot
	case agent:
		check.Status = Fail
		check.Detail = fmt.Sprintf("no keeper answers, so that the containers would be unguarded if the agent ended: %v", err)
		check.Remedy = "see why it does not run (systemctl status assay-keeper, journalctl -u assay-keeper -u assayd)"
	default:
		check.Status = Unknown
		check.Detail = fmt.Sprintf("no keeper answers, and no agent that would start one: %v", err)
		check.Remedy = "start the agent (systemctl start assayd)"
	}
	return check
}

// keeperVersion compares the programs' versions. A keeper outlives upgrades.
func keeperVersion(held *keeperReport, agent *agentReport) Check {
	check := Check{Area: AreaKeeper, Name: "version", Status: OK, Detail: held.Version + ", the agent's"}
	if held.Version != agent.version {
		check.Detail = fmt.Sprintf("%s, the agent's is %s: a keeper is left alone over upgrades, and replaced by systemctl restart assay-keeper while the agent runs",
			held.Version, agent.version)
	}
	return check
}

// separate makes sure that the keeper does not end with the agent's service.
func (n *node) separate(agent, keeper int) Check {
	check := Check{Area: AreaKeeper, Name: "service", Status: OK}
	of, err := n.cgroup(agent)
	var own string
	if err == nil {
		own, err = n.cgroup(keeper)
	}
	switch {
	case err != nil:
		check.Status, check.Detail, check.Remedy = Unknown, err.Error(), runAsRoot
	case own == of && strings.HasSuffix(of, ".service"):
		check.Status = Warn
		check.Detail = fmt.Sprintf("it is in the agent's own service (%s): systemctl restart ends both, and the containers are unguarded meanwhile", filepath.Base(of))
		check.Remedy = fmt.Sprintf("install assay-keeper.service (make install), systemctl daemon-reload, systemctl start --no-block assay-keeper, "+
			"then end this one, which costs nothing while the agent runs: kill %d", keeper)
	default:
		check.Detail = fmt.Sprintf("it is in %s, the agent in %s", own, of)
	}
	return check
}

// cgroup returns the path of a process in the hierarchy that systemd uses.
func (n *node) cgroup(pid int) (string, error) {
	path := fmt.Sprintf("%s/%d/cgroup", n.proc, pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	named := ""
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) < 3:
		case f[1] == "name=systemd": // cgroup v1
			return f[2], nil
		case f[0] == "0":
			named = f[2]
		}
	}
	if named == "" {
		return "", fmt.Errorf("%s names no cgroup of systemd's", path)
	}
	return named, nil
}

// keeperFiles checks RLIMIT_NOFILE of the keeper against what it may have to hold.
func (n *node) keeperFiles(o *Options, agent *agentReport, subject *process, held *keeperReport) Check {
	check := Check{Area: AreaKeeper, Name: "RLIMIT_NOFILE"}
	p, err := readProcess(fmt.Sprintf("%s/%d", n.proc, held.pid), fmt.Sprintf("the keeper (pid %d)", held.pid))
	if err != nil {
		check.Status, check.Detail, check.Remedy = Unknown, err.Error(), runAsRoot
		return check
	}
	containers := expectedContainers(o, agent)
	want := uint64(keeperAtRest+containers*filesPerKept) + min(subject.files, maxMarkFiles)/markShare
	check.Status = OK
	check.Detail = fmt.Sprintf("%s for %s; %d are needed for %d containers and the leases of the agent's kernel marks",
		limitString(p.files), p.name, want, containers)
	if p.files < want {
		check.Status = Warn
		check.Remedy = fmt.Sprintf("set LimitNOFILE=%d in assay-keeper.service, or give the agent fewer", roundUp(want))
	}
	return check
}
