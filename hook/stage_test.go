package hook

import (
	"errors"
	"strings"
	"testing"
)

func TestParseStage(t *testing.T) {
	for _, name := range []string{"createRuntime", "prestart"} {
		if s, err := ParseStage(name); err != nil || string(s) != name {
			t.Errorf("%s: got %q, %v", name, s, err)
		}
	}
	reasons := map[string]string{
		"precreate":       "does not exist yet",
		"createContainer": "the pid inside the container",
		"startContainer":  "inside the container",
		"poststart":       "already running",
		"poststop":        "already gone",
		"createruntime":   "unknown stage",
		"":                "unknown stage",
	}
	for name, reason := range reasons {
		s, err := ParseStage(name)
		if s != "" || !errors.Is(err, ErrStage) || !strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), useInstead) {
			t.Errorf("%s: got %q, %v", name, s, err)
		}
	}
}
