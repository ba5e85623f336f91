package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// What the agent needs of a limit. The numbers are estimates with headroom, for
// advice only: the agent itself lives with what it gets.
const (
	otherGroups       = 16  // fanotify groups of root's other programs
	filesPerContainer = 8   // its group, its pidfd, its mounts while they are marked
	filesPerTenant    = 256 // events that are being scanned or wait for it
	filesAtRest       = 64  // sockets, epolls, record file
	eventShare        = 2   // the agent keeps one in so many descriptors for events
)

// limits compares the kernel's and the process's limits with what the configured
// tenants and the expected containers need.
func (n *node) limits(o *Options, agent *agentReport, subject *process) []Check {
	containers := expectedContainers(o, agent)
	return []Check{
		n.groupLimit(containers, len(o.Config.Tenants), agent != nil),
		n.informational("fs.fanotify.max_user_marks", "", "does not bind the agent, whose groups take unlimited marks"),
		n.informational("fs.lease-break-time", " s", "so long an agent may be stopped (SIGSTOP, a debugger) before a writer gets past a kernel mark"),
		n.informational("fs.fanotify.watchdog_timeout", " s",
			"the kernel logs events that are not answered for so long (0: never); the agent sets it where it is 0 and reads that log"),
		fileLimit(subject, containers, len(o.Config.Tenants)),
	}
}

// expectedContainers is the number of containers that the limits must hold for.
func expectedContainers(o *Options, agent *agentReport) int {
	switch {
	case o.Containers > 0:
		return o.Containers
	case agent != nil:
		return max(DefaultContainers, agent.containers)
	default:
		return DefaultContainers
	}
}

// groupLimit checks fs.fanotify.max_user_groups: a group per container, or fewer
// with containers of one tenant sharing, but never less than one per tenant. An
// agent that is not running yet will try to raise it.
func (n *node) groupLimit(containers, tenants int, running bool) Check {
	const name = "fs.fanotify.max_user_groups"
	have, problem := n.sysctl(name)
	if problem != nil {
		return *problem
	}
	want := uint64(containers + otherGroups)
	check := Check{
		Area: AreaLimits, Name: name, Status: OK,
		Detail: fmt.Sprintf("%d, enough for a group for each of %d containers", have, containers),
	}
	switch {
	case have < uint64(tenants+1):
		check.Status = Fail
		check.Detail = fmt.Sprintf("%d, not even one group for each of %d tenants", have, tenants)
	case have < want:
		check.Status = Warn
		check.Detail = fmt.Sprintf("%d, but %d containers want a group each: beyond the limit, containers of one tenant share groups, "+
			"and every answer wakes all openers that wait on the same group", have, containers)
	}
	if check.Status != OK {
		check.Remedy = setSysctl(name, roundUp(want))
		if !running {
			check.Remedy = "start the agent, which raises it where it may, and run the doctor again; or " + check.Remedy
		}
	}
	return check
}

// informational reports a number that people look at, and what it means here.
func (n *node) informational(name, unit, meaning string) Check {
	have, problem := n.sysctl(name)
	if problem != nil {
		return *problem
	}
	return Check{Area: AreaLimits, Name: name, Status: OK, Detail: fmt.Sprintf("%d%s; %s", have, unit, meaning)}
}

// fileLimit checks RLIMIT_NOFILE: every pending event is an open descriptor.
func fileLimit(p *process, containers, tenants int) Check {
	const name = "RLIMIT_NOFILE"
	if p.files == 0 {
		return Check{Area: AreaLimits, Name: name, Status: Unknown, Detail: "the limits of " + p.name + " could not be read", Remedy: runAsRoot}
	}
	want := uint64(eventShare * max(filesAtRest+containers*filesPerContainer, tenants*filesPerTenant))
	check := Check{
		Area: AreaLimits, Name: name, Status: OK,
		Detail: fmt.Sprintf("%s for %s; about %d are needed for %d containers and %d tenants",
			limitString(p.files), p.name, want, containers, tenants),
	}
	if p.files < want {
		check.Status = Warn
		check.Remedy = fmt.Sprintf("set LimitNOFILE=%d in the agent's systemd unit, or raise the hard limit of whatever starts it", roundUp(want))
	}
	return check
}

// sysctl reads a number of the kernel's. If it cannot, it returns a check that
// says why.
func (n *node) sysctl(name string) (uint64, *Check) {
	path := filepath.Join(n.proc, "sys", strings.ReplaceAll(name, ".", "/"))
	text, err := os.ReadFile(path)
	if err == nil {
		var value uint64
		if value, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			return value, nil
		}
	}
	check := Check{
		Area: AreaLimits, Name: name, Status: Unknown,
		Detail: err.Error(), Remedy: "read it by hand: sysctl " + name,
	}
	if errors.Is(err, fs.ErrNotExist) {
		check.Detail = "this kernel does not have it"
		check.Remedy = "nothing, if the kernel checks above are fine; older kernels have fixed limits"
	}
	return 0, &check
}

// setSysctl is the remedy that sets a sysctl now and at the next boot.
func setSysctl(name string, value uint64) string {
	return fmt.Sprintf("sysctl -w %s=%d, and the same line in /etc/sysctl.d/60-assay.conf", name, value)
}

// roundUp returns the next power of two, at least 256.
func roundUp(n uint64) uint64 {
	p := uint64(256)
	for p < n {
		p *= 2
	}
	return p
}

// limitString prints a limit as people write it.
func limitString(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}
