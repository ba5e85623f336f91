package tenant_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// TestProblems holds every bad input against the exact place, message and
// remedy of each of its problems.
func TestProblems(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"structure.txt", "policy.txt"} {
		inputs, wants := cases(t, file)
		for name, input := range inputs {
			t.Run(strings.TrimSuffix(file, ".txt")+"/"+name, func(t *testing.T) {
				t.Parallel()
				c, err := tenant.Parse("f", []byte(input))
				if got := messages(t, err); got != wants[name] {
					t.Errorf("problems of\n%s\nare\n%s\nwant\n%s", input, got, wants[name])
				}
				if c != nil {
					t.Error("a configuration came with the error")
				}
			})
		}
	}
}

// cases reads the sections of a file in testdata, each after a line "-- NAME --",
// and pairs NAME.yaml with NAME.want.
func cases(tb testing.TB, file string) (inputs, wants map[string]string) {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		tb.Fatal(err)
	}
	header := regexp.MustCompile(`(?m)^-- (.+)\.(yaml|want) --\n`)
	found := header.FindAllStringSubmatchIndex(string(data), -1)
	inputs, wants = make(map[string]string), make(map[string]string)
	for i, at := range found {
		end := len(data)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		into := inputs
		if string(data[at[4]:at[5]]) == "want" {
			into = wants
		}
		into[string(data[at[2]:at[3]])] = string(data[at[1]:end])
	}
	if len(inputs) == 0 || len(inputs) != len(wants) || len(inputs)+len(wants) != len(found) {
		tb.Fatalf("%s: %d inputs and %d expectations in %d sections", file, len(inputs), len(wants), len(found))
	}
	return inputs, wants
}

// messages returns the problems of err, which must be an *Error, one a line.
func messages(t *testing.T, err error) string {
	t.Helper()
	var e *tenant.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want a *tenant.Error", err)
	}
	for _, p := range e.Problems {
		if p.Remedy == "" || p.Message == "" {
			t.Errorf("%#v lacks a message or a remedy", p)
		}
	}
	return e.Error() + "\n"
}
