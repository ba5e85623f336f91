package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ourHook is what marks the hook in a specification as ours.
const ourHook = markerKey + targetContainerd

// hooked returns spec with h as the last of its createRuntime hooks, in the place of
// an earlier one of ours.
func hooked(spec map[string]any, h *specs.Hook) ([]byte, error) {
	hooks, ok := spec["hooks"].(map[string]any)
	if !ok {
		hooks = map[string]any{}
	}
	others, ok := hooks["createRuntime"].([]any)
	if !ok && hooks["createRuntime"] != nil {
		return nil, errors.New("hooks.createRuntime is not a list")
	}
	others = slices.DeleteFunc(slices.Clone(others), isOurs)
	hooks["createRuntime"] = append(others, h)
	spec["hooks"] = hooks
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the base specification: %w", err)
	}
	return append(data, '\n'), nil
}

// isOurs reports whether a hook of a specification is one that hooked put there.
func isOurs(h any) bool {
	fields, _ := h.(map[string]any)
	env, _ := fields["env"].([]any)
	return slices.Contains(env, any(ourHook))
}

// SpecHook returns the hook that [Containerd] put into the base specification text,
// or nil if it has none.
func SpecHook(text []byte) (*specs.Hook, error) {
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("not an OCI runtime specification: %w", err)
	}
	if spec.Hooks == nil {
		return nil, nil
	}
	for i := range spec.Hooks.CreateRuntime {
		if h := &spec.Hooks.CreateRuntime[i]; slices.Contains(h.Env, ourHook) {
			return h, nil
		}
	}
	return nil, nil
}

// ownSpec reports whether text is a base specification that Containerd wrote.
func ownSpec(text []byte) bool {
	h, err := SpecHook(text)
	return err == nil && h != nil
}
