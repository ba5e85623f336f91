package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A Spec is the container that a test wants.
type Spec struct {
	Args       []string // command; the entrypoint of the container
	Image      string   // id of another image than the test image; only for podman
	Gate       *Gate    // nil: a container that no agent is told of
	Binds      []Bind
	Tmpfs      []string // destinations of fresh tmpfs mounts
	Privileged bool     // all capabilities, no seccomp filter
	ReadOnly   bool     // read-only root filesystem
}

// A Bind is a host directory inside the container.
type Bind struct{ Source, Destination string }

// A Gate is the hook that announces a container.
type Gate struct {
	Socket         string // the agent's
	Namespace      string // selects the tenant; "" is none
	OnAgentMissing string // "" leaves the default
	Wait           string // for an agent that is missing; "" leaves the default
	Stage          string // prestart or createRuntime; "" is createRuntime. Not for podman.
}

// hookArgs returns the arguments of the hook before the stage, as an OCI
// runtime configuration has them: the program's name first.
func (g *Gate) hookArgs() []string {
	args := []string{"assay-hook", "--socket", g.Socket}
	if g.Namespace != "" {
		args = append(args, "--namespace", g.Namespace)
	}
	if g.OnAgentMissing != "" {
		args = append(args, "--on-agent-missing", g.OnAgentMissing)
	}
	if g.Wait != "" {
		args = append(args, "--wait", g.Wait)
	}
	stage := g.Stage
	if stage == "" {
		stage = "createRuntime"
	}
	return append(args, stage)
}

// An Engine runs containers of the test image with one runtime.
type Engine interface {
	// Name is how tests call it: podman-runc, podman-crun, runc, crun.
	Name() string
	// Run runs a container to its end and removes it.
	Run(tb testing.TB, s Spec) Result
	// Start starts a container in the background; it is gone when tb ends.
	Start(tb testing.TB, s Spec) Container
}

// A Container is a running container.
type Container interface {
	// ID returns the id that the runtime announces.
	ID() string
	// PID returns the pid of the first process on the host.
	PID(tb testing.TB) int
	// Exec runs another command in the container to its end.
	Exec(tb testing.TB, args ...string) Result
	// Kill ends the first process with SIGKILL and waits for its end.
	Kill(tb testing.TB)
	// Remove removes the container and whatever was mounted for it, at once:
	// a mount that is still busy is an error.
	Remove(tb testing.TB)
}

// Engines returns every engine, those of a missing runtime included: their first
// use fails with [Require].
func (s *Suite) Engines() []Engine {
	return []Engine{
		s.Podman("runc"), s.Podman("crun"),
		&bundles{suite: s, runtime: "runc"}, &bundles{suite: s, runtime: "crun"},
	}
}

// Runc returns the engine that runs plain bundles with runc, the fastest one.
func (s *Suite) Runc() Engine { return &bundles{suite: s, runtime: "runc"} }

// Image returns the test image, built once.
func (s *Suite) Image(tb testing.TB) *Image {
	tb.Helper()
	img, err := s.image()
	if err != nil {
		tb.Fatal(err)
	}
	return img
}

// newID returns a container id that no other container of the run has.
func (s *Suite) newID() string { return fmt.Sprintf("%s-%d", s.cgroup, s.ids.Add(1)) }

// findCrun returns the crun to run: the distribution's, or where that cannot
// start a container a wrapper around it. crun before 1.9 refuses hosts whose
// cgroup v1 tree has a cgroup2 mount inside (hybrid mode); the wrapper runs it in
// a mount namespace without that mount.
func (s *Suite) findCrun() (string, error) {
	const hybrid = "/sys/fs/cgroup/unified"
	ctx := context.Background()
	if _, err := must(ctx, nil, "crun", "--version"); err != nil {
		return "", err
	}
	if _, err := os.Stat(hybrid); errors.Is(err, os.ErrNotExist) {
		return "crun", nil
	}
	wrapper := filepath.Join(s.dir, "crun-wrapper")
	script := strings.Join([]string{
		"#!/bin/sh",
		`exec unshare --mount --propagation slave sh -c 'umount ` + hybrid + ` && exec crun "$@"' crun "$@"`, "",
	}, "\n")
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil {
		return "", fmt.Errorf("crun wrapper: %w", err)
	}
	return wrapper, nil
}

// runtime returns the program of the named runtime.
func (s *Suite) runtime(tb testing.TB, name string) string {
	tb.Helper()
	if name == "crun" {
		path, err := s.crun()
		Require(tb, "crun", err)
		return path
	}
	_, err := must(context.Background(), nil, name, "--version")
	Require(tb, name, err)
	return name
}
