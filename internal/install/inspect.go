package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A HandlerState is one of containerd's runtime handlers, and whether its containers
// start with our hook.
type HandlerState struct {
	Handler
	Hook *specs.Hook // in the handler's base specification, nil if there is none
	Err  error       // why its base specification cannot be read
}

// A ContainerdState is what of an installation a containerd would read now.
type ContainerdState struct {
	Handlers []HandlerState
	DropIn   string // our file for imports beside the configuration, "" if there is none
	Imported bool   // the configuration imports it
}

// InspectContainerd asks the containerd program what its configuration in the file
// config means, and looks for our hook. It changes nothing.
func InspectContainerd(ctx context.Context, program, config string) (ContainerdState, error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return ContainerdState{}, fmt.Errorf("containerd's configuration: %w", err)
	}
	main, err := parseConfig(text)
	if err != nil {
		return ContainerdState{}, fmt.Errorf("containerd's configuration %s: %w", config, err)
	}
	now, err := dump(ctx, program, config)
	if err != nil {
		return ContainerdState{}, err
	}
	var s ContainerdState
	file := filepath.Join(filepath.Dir(config), filepath.Base(DefaultContainerdDir), DropInFile)
	if _, err := os.Stat(file); err == nil {
		s.DropIn, s.Imported = file, main.imports(config, file)
	}
	for _, h := range now.handlers() {
		s.Handlers = append(s.Handlers, h.state())
	}
	return s, nil
}

// state reads the handler's base specification.
func (h Handler) state() HandlerState {
	s := HandlerState{Handler: h}
	if h.BaseSpec == "" {
		return s
	}
	text, err := os.ReadFile(h.BaseSpec)
	if err == nil {
		s.Hook, err = SpecHook(text)
	}
	if err != nil {
		s.Err = fmt.Errorf("base_runtime_spec %s: %w", h.BaseSpec, err)
	}
	return s
}
