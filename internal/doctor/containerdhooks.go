package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/assay-project/assay/internal/install"
)

// installContainerd is the remedy wherever containerd does not start the hook.
const installContainerd = "assay install containerd, then restart containerd"

// containerdHooks looks for the hook in the base specifications of containerd's runtime
// handlers, and reports whether one has it. A node without containerd, or without its
// configuration, has none.
func containerdHooks(ctx context.Context, o *Options) (checks []Check, installed bool) {
	program, err := exec.LookPath("containerd")
	if err != nil {
		return nil, false
	}
	if _, err := os.Stat(o.ContainerdConfig); errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	state, err := install.InspectContainerd(ctx, program, o.ContainerdConfig)
	if err != nil {
		return []Check{{Area: AreaHooks, Name: "containerd", Status: Unknown, Detail: err.Error(), Remedy: "run that as root by hand"}}, false
	}
	if state.DropIn != "" && !state.Imported {
		checks = append(checks, Check{
			Area: AreaHooks, Name: state.DropIn, Status: Fail,
			Detail: "is there, but " + o.ContainerdConfig + " does not import it: containers start without the hook",
			Remedy: "assay install containerd --edit, then restart containerd",
		})
	}
	for i := range state.Handlers {
		checks = append(checks, handlerCheck(&state.Handlers[i]))
		installed = installed || state.Handlers[i].Hook != nil
	}
	return checks, installed
}

// handlerCheck says whether containers of the handler start with the hook, and with
// one that works.
func handlerCheck(h *install.HandlerState) Check {
	check := Check{Area: AreaHooks, Name: "containerd handler " + h.Name, Status: Warn, Remedy: installContainerd}
	switch {
	case h.Err != nil:
		check.Status, check.Detail = Fail, fmt.Sprintf("%v: containerd cannot start with it", h.Err)
	case h.Hook == nil && !h.Runc():
		check.Detail = "its containers (" + h.Type + ") run behind a kernel of their own, or are no processes of this node: nothing guards them"
		check.Remedy = "keep tenants from its RuntimeClass, if that is not wanted"
	case h.Hook == nil:
		check.Detail = "its containers start without the hook: while the agent and its NRI plugin are away, unguarded"
	default:
		e := hookEntry{file: check.Name, Stages: []string{"createRuntime"}}
		e.Hook.Path, e.Hook.Args, e.Hook.Env, e.required = h.Hook.Path, h.Hook.Args, h.Hook.Env, true
		check = e.check()
	}
	return check
}
