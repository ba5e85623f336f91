// Package doctor examines a node: whether the kernel, the rights and limits of
// the agent, the runtimes and the scanners are as Assay needs them, and what to
// do where they are not.
//
// It owns the questions and the remedies. It must not own the answers: features
// are tried by the rooms that use them, scanners are built by internal/scanners, hooks
// are read as internal/install wrote them. It changes nothing on the node. Its
// checks go to cmd/assay, which prints them.
//
// The doctor needs neither an agent nor root. What it cannot find out without
// them is [Unknown] and says why; [Fail] is only what was seen to be wrong.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/assay-project/assay/internal/containerd"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/install"
	"github.com/assay-project/assay/internal/tenant"
)

// A Status is the result of a check.
type Status string

// The statuses.
const (
	OK      Status = "ok"
	Warn    Status = "warn"    // Assay works, but something is slower, coarser or left out
	Fail    Status = "fail"    // Assay cannot work, or does not protect what it should
	Unknown Status = "unknown" // could not be found out; Detail says why
)

// The areas, in the order in which Run reports them.
const (
	AreaConfiguration = "configuration"
	AreaAgent         = "agent"
	AreaKeeper        = "keeper"
	AreaPrivileges    = "privileges"
	AreaKernel        = "kernel"
	AreaLimits        = "limits"
	AreaRuntimes      = "runtimes"
	AreaHooks         = "hooks"
	AreaScanners      = "scanners"
)

// DefaultContainers is how many containers at once the limits are checked
// against, unless the caller or the running agent knows better: about what a
// kubelet admits by default (110 pods).
const DefaultContainers = 110

// runAsRoot is the remedy wherever root is needed to look.
const runAsRoot = "run the doctor as root: sudo assay doctor"

// A Check is one thing that was looked at.
type Check struct {
	Area   string `json:"area"`
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"` // set unless Status is OK
}

// Options say what to examine. Only Config is required.
type Options struct {
	// Config is the configuration in question.
	Config *tenant.Config
	// ConfigFile is where Config was read from; "" is the built-in default.
	ConfigFile string
	// Socket is the agent's socket; "" means Config.Socket.
	Socket string
	// Containers is how many containers are expected at once; 0 means
	// DefaultContainers, or what the agent guards now if that is more.
	Containers int
	// HooksDirs is where runtimes look for hooks; none means where podman does.
	HooksDirs []string
	// Containerd is the containerd to ask; what is left out is as in Config.
	Containerd containerd.Options
	// ContainerdConfig is containerd's configuration; "" means where containerd looks.
	ContainerdConfig string
	// Timeout bounds every question to another process; 0 means 3 s.
	Timeout time.Duration
}

// Run examines the node and returns what it saw, area by area. It never fails
// as a whole: what cannot be examined is an Unknown check. When ctx is done,
// what is still open becomes Unknown or Fail with ctx's error.
func Run(ctx context.Context, o Options) []Check {
	o.Socket = cmp.Or(o.Socket, o.Config.Socket)
	o.ContainerdConfig = cmp.Or(o.ContainerdConfig, install.DefaultContainerdConfig)
	o.Timeout = cmp.Or(o.Timeout, 3*time.Second)
	if len(o.HooksDirs) == 0 {
		o.HooksDirs = []string{install.DefaultHooksDir}
	}
	o.Containerd.Socket = cmp.Or(o.Containerd.Socket, o.Config.Containerd.Socket, containerd.DefaultSocket)
	o.Containerd.Namespace = cmp.Or(o.Containerd.Namespace, o.Config.Containerd.Namespace, containerd.DefaultNamespace)
	return hostNode().examine(ctx, &o)
}

// A node is the part of the machine that the checks read.
type node struct {
	proc      string // the proc file system
	features  func() []fanotify.Feature
	askKeeper func(ctx context.Context, socket string) (*keeperReport, error)
	probe     func(ctx context.Context, o containerd.Options) (containerd.Report, error)
	runtimes  []program
	sockets   []endpoint
}

// hostNode is the machine that this process runs on.
func hostNode() *node {
	return &node{
		proc: "/proc", features: features, askKeeper: askKeeper, probe: probeContainerd,
		runtimes: programs(), sockets: endpoints(),
	}
}

// examine runs all checks.
func (n *node) examine(ctx context.Context, o *Options) []Check {
	hooks := readHooks(o.HooksDirs)
	bases, installed := containerdHooks(ctx, o)
	agent, agentCheck := askAgent(ctx, o, installed || len(hooks.entries) > 0)
	checks := []Check{configuration(o), agentCheck}

	self, err := readProcess(n.proc+"/self", "this process")
	if err != nil {
		self = &process{name: "this process", euid: -1}
	}
	subject, isAgent := n.subject(agent, self)
	checks = append(checks, n.keepers(ctx, o, agent, subject)...)
	if err == nil {
		checks = append(checks, privileges(subject, isAgent)...)
	} else {
		checks = append(checks, Check{
			Area: AreaPrivileges, Name: "process", Status: Unknown, Detail: err.Error(),
			Remedy: "mount a proc file system on /proc and run the doctor again",
		})
	}
	checks = append(checks, kernel(n.features(), self)...)
	checks = append(checks, n.limits(o, agent, subject)...)
	checks = append(checks, n.findRuntimes(ctx, o)...)
	checks = append(checks, n.containerd(ctx, o)...)
	checks = append(checks, hooks.checks...)
	checks = append(checks, bases...)
	return append(checks, askScanners(ctx, o, self)...)
}

// subject returns the process whose rights and limits matter: the agent where
// one answers and can be looked at, else this process in its place.
func (n *node) subject(agent *agentReport, self *process) (p *process, isAgent bool) {
	if agent == nil || agent.pid <= 0 {
		return self, false
	}
	p, err := readProcess(fmt.Sprintf("%s/%d", n.proc, agent.pid), fmt.Sprintf("the agent (pid %d)", agent.pid))
	if err != nil {
		return self, false
	}
	return p, true
}

// configuration reports what the other checks are measured against.
func configuration(o *Options) Check {
	return Check{
		Area: AreaConfiguration, Name: cmp.Or(o.ConfigFile, "built-in default"), Status: OK,
		Detail: fmt.Sprintf("valid: tenants %d, scanners %d", len(o.Config.Tenants), len(o.Config.Scanners)),
	}
}
