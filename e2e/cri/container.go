package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/assay-project/assay/e2e/harness"
)

// A Spec is the container that a test wants.
type Spec struct {
	Name        string // one that no other container of the pod has
	Image       string // TestImage
	Args        []string
	Mounts      []Mount
	Labels      map[string]string
	Annotations map[string]string
}

// A Mount is a volume as the kubelet makes them: a directory of the host.
type Mount struct {
	Source, Destination string
	ReadOnly            bool
}

// A Container is a container of a pod. It is a [harness.Container].
type Container struct {
	Name string

	pod *Pod
	id  string
	log string // path on the host
}

var _ harness.Container = (*Container)(nil)

// Create creates a container, or says what containerd said.
func (p *Pod) Create(tb testing.TB, s Spec) (*Container, error) {
	tb.Helper()
	p.serial++
	c := &Container{Name: s.Name, pod: p}
	if c.Name == "" {
		c.Name = fmt.Sprintf("container-%d", p.serial)
	}
	if s.Image == "" {
		s.Image = TestImage
	}
	config := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name},
		Image:       &cri.ImageSpec{Image: s.Image},
		Command:     s.Args,
		Labels:      labels(s.Labels, p, p.config.GetMetadata().GetUid()),
		Annotations: s.Annotations,
		LogPath:     fmt.Sprintf("%s-%d.log", c.Name, p.serial), // names come again
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	config.Labels["io.kubernetes.container.name"] = c.Name
	for _, m := range s.Mounts {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: m.Source, ContainerPath: m.Destination, Readonly: m.ReadOnly})
	}
	c.log = filepath.Join(p.config.GetLogDirectory(), config.GetLogPath())
	ctx, cancel := call(tb)
	defer cancel()
	r, err := p.node.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.config})
	c.id = r.GetContainerId()
	return c, err
}

// TryStart starts the container, or says what containerd said.
func (c *Container) TryStart(tb testing.TB) error {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	_, err := c.pod.node.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.id})
	return err
}

// ID returns the id that containerd announces.
func (c *Container) ID() string { return c.id }

// status returns what CRI says of the container, with what only containerd says.
func (c *Container) status(tb testing.TB) (*cri.ContainerStatusResponse, error) {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	return c.pod.node.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
}

// PID returns the pid of the first process on the host.
func (c *Container) PID(tb testing.TB) int {
	tb.Helper()
	status, err := c.status(tb)
	var info struct {
		PID int `json:"pid"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(status.GetInfo()["info"]), &info)
	}
	if err == nil && info.PID == 0 {
		err = fmt.Errorf("it has none: %s", status.GetStatus())
	}
	if err != nil {
		tb.Fatalf("pid of container %s: %v", c.Name, err)
	}
	return info.PID
}

// Wait waits until the container ends by itself, and returns its exit code and what it
// has written.
func (c *Container) Wait(tb testing.TB) harness.Result {
	tb.Helper()
	var r harness.Result
	harness.Eventually(tb, "container "+c.Name+" ends", func() error {
		status, err := c.status(tb)
		if err == nil && status.GetStatus().GetState() != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("it is %v", status.GetStatus().GetState())
		}
		r.Code = int(status.GetStatus().GetExitCode())
		return err
	})
	r.Stdout, r.Stderr = c.Output(tb)
	return r
}

// Output returns what the container's first process has written so far.
func (c *Container) Output(tb testing.TB) (stdout, stderr string) {
	tb.Helper()
	text, err := os.ReadFile(c.log)
	if errors.Is(err, os.ErrNotExist) {
		return "", "" // it has not started
	}
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		// TIME STREAM F|P TEXT, where P says that the line goes on in the next one.
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			tb.Fatalf("log of container %s: unexpected line %q", c.Name, line)
		}
		if f[2] == "F" {
			f[3] += "\n"
		}
		if f[1] == "stdout" {
			stdout += f[3]
		} else {
			stderr += f[3]
		}
	}
	return stdout, stderr
}

// Exec runs another command in the container to its end.
func (c *Container) Exec(tb testing.TB, args ...string) harness.Result {
	tb.Helper()
	r, err := c.TryExec(tb, args...)
	if err != nil {
		tb.Fatalf("exec in container %s: %v", c.Name, err)
	}
	return r
}

// TryExec is Exec, or says what containerd said: a program that cannot be executed is an
// error of the call.
func (c *Container) TryExec(tb testing.TB, args ...string) (harness.Result, error) {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	r, err := c.pod.node.runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: c.id, Cmd: args, Timeout: int64(patience / time.Second),
	})
	return harness.Result{
		Code: int(r.GetExitCode()), Stdout: string(r.GetStdout()), Stderr: string(r.GetStderr()), Hung: ctx.Err() != nil,
	}, err
}

// TryStop stops the container as the kubelet does, without any grace, or says what
// containerd said.
func (c *Container) TryStop(tb testing.TB) error {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	_, err := c.pod.node.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id})
	return err
}

// Kill ends the first process with SIGKILL and waits for its end.
func (c *Container) Kill(tb testing.TB) {
	tb.Helper()
	if err := c.TryStop(tb); err != nil {
		tb.Fatalf("stop container %s: %v", c.Name, err)
	}
}

// TryRemove removes the container, or says what containerd said.
func (c *Container) TryRemove(tb testing.TB) error {
	tb.Helper()
	ctx, cancel := call(tb)
	defer cancel()
	_, err := c.pod.node.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.id})
	return err
}

// Remove removes the container, stopped first if it runs, and whatever was mounted for
// it, at once: a mount that is still there is an error.
func (c *Container) Remove(tb testing.TB) {
	tb.Helper()
	c.Kill(tb)
	// containerd may not have noticed yet that a process has ended, and then refuses.
	harness.Eventually(tb, "containerd notices the end of "+c.Name, func() error {
		status, err := c.status(tb)
		if state := status.GetStatus().GetState(); err == nil && state == cri.ContainerState_CONTAINER_RUNNING {
			err = fmt.Errorf("it is %v", state)
		}
		return err
	})
	if err := c.TryRemove(tb); err != nil {
		tb.Errorf("remove container %s: %v", c.Name, err)
	}
	if at := c.pod.node.mounts(c.id); len(at) > 0 {
		tb.Errorf("container %s is removed, and still mounted: %q", c.Name, at)
	}
}
