package install

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestCRIO(t *testing.T) {
	h := host(t)
	opts := CRIOOptions{HooksDir: h.HooksDir, HookPath: h.HookPath, Exempt: []string{"b", "a", "b"}}
	r, err := CRIO(opts)
	must(t, err)
	var e entry
	must(t, json.Unmarshal(r.Content, &e))
	want := []string{
		"env", h.HookPath, "--runtime", "cri-o", "--socket", "/run/assay/agent.sock", "--timeout", "30s",
		"--exempt-namespace", "a", "--exempt-namespace", "b", "createRuntime",
	}
	if !r.Changed || !slices.Equal(e.Hook.Args, want) || !e.When.Always || e.Hook.Path != envPath {
		t.Fatalf("got %s", r.Content)
	}
	if again, err := CRIO(opts); err != nil || again.Changed {
		t.Errorf("the second time: %+v, %v", again, err)
	}

	// Podman would run it for its containers, and find no pod.
	for what, do := range map[string]func(PodmanOptions) (Result, error){"install": Podman, "uninstall": UninstallPodman} {
		if _, err := do(h); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "is cri-o's") {
			t.Errorf("%s podman: %v", what, err)
		}
	}
	if r, err := UninstallCRIO(CRIOOptions{HooksDir: h.HooksDir}); err != nil || !r.Changed {
		t.Errorf("uninstalled %+v, %v", r, err)
	}
	_, err = Podman(h)
	must(t, err)
	if _, err := CRIO(opts); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "is podman's") {
		t.Errorf("over podman's: %v", err)
	}
}

func TestCRIOBadOptions(t *testing.T) {
	h := host(t)
	for name, opts := range map[string]CRIOOptions{
		"not an absolute path":   {HooksDir: "hooks.d", HookPath: h.HookPath},
		"has a =":                {HooksDir: h.HooksDir, HookPath: "/a=b"},
		"is no namespace's name": {HooksDir: h.HooksDir, HookPath: h.HookPath, Exempt: []string{"a b"}},
	} {
		if _, err := CRIO(opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}
