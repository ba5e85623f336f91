package nri

import (
	"errors"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/assay-project/assay/internal/announce"
)

// hookName is what the hook program is called, wherever it is.
const hookName = "assay-hook"

// hookStage is the stage at which the container's process exists and has run nothing.
const hookStage = "createRuntime"

// announcement is what the runtime says of a container, without its process. Nothing of
// it is the container's own word: namespace and pod labels are the Kubernetes API's.
// Either message may be nil.
func (p *Plugin) announcement(pod *api.PodSandbox, container *api.Container) announce.Container {
	c := announce.Container{
		ID:          container.GetId(),
		Runtime:     p.runtime(),
		Name:        container.GetName(),
		Image:       container.GetImage().GetName(),
		ImageDigest: container.GetImage().GetDigest(),
	}
	if pod.GetNamespace() == "" {
		return c // the runtime has no pod for it: its labels are not told
	}
	c.Namespace, c.Pod, c.PodUID = pod.GetNamespace(), pod.GetName(), pod.GetUid()
	c.PodLabels = maps.Clone(pod.GetLabels())
	if c.PodLabels == nil {
		c.PodLabels = map[string]string{} // told, and none
	}
	return c
}

// started is the announcement of a container that is about to run. What its message
// lacks is taken from when it was created.
func (p *Plugin) started(pod *api.PodSandbox, container *api.Container) announce.Container {
	c := p.announcement(pod, container)
	if c.Namespace == "" {
		if before, ok := p.expected.get(c.ID); ok {
			c = before
		}
	}
	c.PID, c.Rootfs, c.Source = int(container.GetPid()), "/", "nri:StartContainer"
	return c
}

// complete reports what the runtime has not said and the choice of a tenant needs.
func complete(c *announce.Container) error {
	switch {
	case c.ID == "":
		return errors.New("the runtime's message does not say which container it is")
	case c.Namespace == "":
		return errors.New("the runtime's message does not say to which pod it belongs")
	}
	return nil
}

// hooked reports whether the container has the hook already, for instance from the
// runtime's base specification. Only root writes hooks into a container's specification.
func (p *Plugin) hooked(container *api.Container) bool {
	hooks := container.GetHooks()
	return slices.ContainsFunc(hooks.GetCreateRuntime(), isHook) || slices.ContainsFunc(hooks.GetPrestart(), isHook)
}

// isHook reports whether a hook is ours: the program itself, or env(1) that starts it.
func isHook(h *api.Hook) bool {
	if path.Base(h.GetPath()) == hookName {
		return true
	}
	args := h.GetArgs()
	return path.Base(h.GetPath()) == "env" && len(args) > 1 && path.Base(args[1]) == hookName
}

// hook is the hook to put into a container.
func (p *Plugin) hook() *api.Hook {
	args := slices.Clone(p.opts.Hook)
	if r := p.runtime(); r != "" {
		args = append(args, "--runtime", string(r))
	}
	return &api.Hook{
		Path:    p.opts.Hook[0],
		Args:    append(args, hookStage),
		Timeout: api.Int(int((p.opts.HookTimeout + time.Second - 1) / time.Second)),
	}
}
