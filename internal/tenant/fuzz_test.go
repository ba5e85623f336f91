package tenant_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// FuzzParse: every input is either a usable configuration, which means the same
// when written out and read again, or an error whose every problem has a place
// in the file and a remedy.
func FuzzParse(f *testing.F) {
	for _, file := range []string{"structure.txt", "policy.txt"} {
		inputs, _ := cases(f, file)
		for _, input := range inputs {
			f.Add([]byte(input))
		}
	}
	f.Add([]byte(everyKey))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := tenant.Parse("f", data)
		if err != nil {
			checkError(t, err, string(data))
			return
		}
		checkOwners(t, c)
		second := again(t, c)
		if !reflect.DeepEqual(second, c) || second.Hash() != c.Hash() {
			t.Errorf("written out and read again,\n%+v becomes\n%+v", c, second)
		}
	})
}

func checkError(t *testing.T, err error, input string) {
	t.Helper()
	var e *tenant.Error
	if !errors.As(err, &e) || len(e.Problems) == 0 {
		t.Fatalf("error is %#v, want a *tenant.Error with problems", err)
	}
	input = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(input)
	lines := strings.Count(input, "\n") + 1
	for _, p := range e.Problems {
		if p.File != "f" || p.Line < 1 || p.Line > lines || p.Column < 1 || p.Message == "" || p.Remedy == "" {
			t.Errorf("problem %#v of a file with %d lines", p, lines)
		}
	}
}
