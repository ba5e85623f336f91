package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// A program is a container runtime's command.
type program struct {
	name string
	note string // how Assay gets to know its containers
}

// programs returns the commands to look for.
func programs() []program {
	return []program{
		{"podman", "announces containers through its hooks directories"},
		{"runc", "announces containers whose config.json has the hook; podman and others put it there"},
		{"crun", "announces containers whose config.json has the hook; podman and others put it there"},
	}
}

// An endpoint is the socket of a runtime's daemon.
type endpoint struct {
	name, path   string
	note, remedy string // without a remedy all is well
}

// endpoints returns the daemons to look for, and what this version of Assay does
// about their containers.
func endpoints() []endpoint {
	return []endpoint{
		{
			"docker", "/run/docker.sock", "runs here, but nothing announces its containers: they are not guarded",
			"docker reads no hooks directories and knows no hooks, see docs/limitations.md",
		},
		{
			"CRI-O", "/run/crio/crio.sock", "runs here and reads the same hooks directories as podman, but this version is not tested with it",
			"assay install cri-o, and check that \"assay status\" lists its containers before you rely on it",
		},
	}
}

// findRuntimes looks for runtimes and says what Assay does about each.
func (n *node) findRuntimes(ctx context.Context, o *Options) []Check {
	var checks []Check
	for _, p := range n.runtimes {
		if path, err := exec.LookPath(p.name); err == nil {
			checks = append(checks, p.check(ctx, o, path))
		}
	}
	if len(checks) == 0 {
		checks = append(checks, Check{
			Area: AreaRuntimes, Name: "commands", Status: Warn,
			Detail: "no runtime that can run the hook is on PATH: " + os.Getenv("PATH"),
			Remedy: "install podman, runc or crun, or run the doctor with their directory on PATH",
		})
	}
	for _, e := range n.sockets {
		if check, found := e.check(); found {
			checks = append(checks, check)
		}
	}
	return checks
}

// check asks the runtime for its version.
func (p *program) check(ctx context.Context, o *Options, path string) Check {
	check := Check{Area: AreaRuntimes, Name: p.name}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = o.Timeout
	out, err := cmd.Output()
	if err != nil {
		check.Status = Unknown
		check.Detail = fmt.Sprintf("%s --version: %v", path, err)
		check.Remedy = "run that command by hand"
		return check
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	check.Status = OK
	check.Detail = fmt.Sprintf("%s (%s); %s", strings.TrimSpace(string(line)), path, p.note)
	return check
}

// check reports the daemon if its socket exists.
func (e *endpoint) check() (Check, bool) {
	info, err := os.Stat(e.path)
	check := Check{Area: AreaRuntimes, Name: e.name, Status: Warn, Detail: e.path + " " + e.note, Remedy: e.remedy}
	if e.remedy == "" {
		check.Status = OK
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Check{}, false
	case err != nil:
		check.Status, check.Detail, check.Remedy = Unknown, err.Error(), runAsRoot
	case info.Mode().Type() != fs.ModeSocket:
		return Check{}, false
	}
	return check, true
}
