package doctor

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

func TestAskScanners(t *testing.T) {
	o, dir := fakeOptions(t), t.TempDir()
	bad := filepath.Join(dir, "bad.hsb")
	write(t, bad, "this is no hash\n")
	o.Config.Scanners = []tenant.Scanner{
		{Name: "good", Hashlist: &tenant.Hashlist{}},
		{Name: "bad", Hashlist: &tenant.Hashlist{Files: []string{bad}}},
		{Name: "down", Clamd: &tenant.Clamd{Address: "unix:" + dir + "/none", Connections: 1}},
	}
	checks := askScanners(t.Context(), o, &process{})
	want(t, checks[0], OK, "ready, generation", "")
	want(t, checks[1], Fail, bad, "configuration")
	want(t, checks[2], Fail, scanner.ErrUnavailable.Error(), dir+"/none is its LocalSocket")
	for i, name := range []string{"good (hashlist)", "bad (hashlist)", "down (clamd)"} {
		if checks[i].Name != name {
			t.Errorf("check %d is of %q, want %q", i, checks[i].Name, name)
		}
	}
}

func TestScannerFailure(t *testing.T) {
	clamd := &tenant.Scanner{Clamd: &tenant.Clamd{Address: "tcp:h:1"}}
	denied := fmt.Errorf("connect: %w", fs.ErrPermission)
	for name, tt := range map[string]struct {
		cfg    *tenant.Scanner
		err    error
		uid    int
		status Status
		remedy string
	}{
		"denied to a user": {clamd, denied, 1000, Unknown, "sudo"},
		"denied to root":   {clamd, denied, 0, Fail, "the message"},
		"down":             {clamd, scanner.ErrUnavailable, 0, Fail, "tcp:h:1"},
		"hash list":        {&tenant.Scanner{Hashlist: &tenant.Hashlist{}}, errUnused, 0, Fail, "list"},
	} {
		t.Run(name, func(t *testing.T) {
			var check Check
			describeScannerFailure(&check, tt.cfg, tt.err, &process{euid: tt.uid})
			want(t, check, tt.status, tt.err.Error(), tt.remedy)
		})
	}
}
