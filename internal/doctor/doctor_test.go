package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/containerd"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	allCaps    = "000001ffffffffff"
	everything = uint64(1)<<41 - 1
	hostMap    = "         0          0 4294967295\n"
	ownMap     = "         0     100000      65536\n"
	plenty     = "20000"
	noLimit    = "unlimited"
	anyUser    = 1000
	rootUser   = 0
)

// writeProcess makes a process directory under proc.
func writeProcess(t *testing.T, proc, pid string, uid int, caps, files, uidMap string) {
	t.Helper()
	write(t, filepath.Join(proc, pid, "status"), fmt.Sprintf("Name:\tx\nUid:\t%d\t%d\t%d\t%d\nCapEff:\t%s\n", uid, uid, uid, uid, caps))
	write(t, filepath.Join(proc, pid, "limits"),
		"Limit                     Soft Limit           Hard Limit           Units     \n"+
			"Max open files            1024                 "+files+"                files     \n")
	write(t, filepath.Join(proc, pid, "uid_map"), uidMap)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fakeNode is a machine on which everything is as it should be.
func fakeNode(t *testing.T) *node {
	t.Helper()
	proc := t.TempDir()
	writeProcess(t, proc, "self", rootUser, allCaps, plenty, hostMap)
	for name, value := range map[string]string{
		"fs/fanotify/max_user_groups": "1024\n", "fs/fanotify/max_user_marks": "65536\n", "fs/lease-break-time": "45\n",
	} {
		write(t, filepath.Join(proc, "sys", name), value)
	}
	return &node{
		proc:      proc,
		features:  func() []fanotify.Feature { return []fanotify.Feature{feature("marks", true, nil)} },
		askKeeper: func(context.Context, string) (*keeperReport, error) { return nil, unix.ENOENT },
		runtimes:  []program{{name: "true", note: "note"}},
	}
}

func feature(name string, required bool, err error) fanotify.Feature {
	return fanotify.Feature{
		Name: name, Since: "9.9", Required: required, Without: "something is lost", Remedy: "upgrade",
		Probe: func() error { return err },
	}
}

// fakeOptions name nothing that exists.
func fakeOptions(t *testing.T) *Options {
	t.Helper()
	dir := t.TempDir()
	return &Options{
		Config: tenant.Default(), Socket: filepath.Join(dir, "agent.sock"),
		HooksDirs: []string{filepath.Join(dir, "hooks.d")}, Timeout: time.Minute,
		Containerd: containerd.Options{Socket: filepath.Join(dir, "containerd.sock")},
	}
}

// find returns the check called name, or fails the test.
func find(t *testing.T, checks []Check, area, name string) Check {
	t.Helper()
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Area == area && c.Name == name })
	if i < 0 {
		t.Fatalf("no check %q in area %q among %+v", name, area, checks)
	}
	return checks[i]
}

// want fails the test unless c has the status and its detail and remedy contain
// the given words.
func want(t *testing.T, c Check, s Status, detail, remedy string) {
	t.Helper()
	if c.Status != s || !strings.Contains(c.Detail, detail) || !strings.Contains(c.Remedy, remedy) {
		t.Errorf("check is %+v\nwant status %q, detail with %q, remedy with %q", c, s, detail, remedy)
	}
}

func TestEveryCheckThatIsNotOKHasARemedy(t *testing.T) {
	healthy := fakeNode(t)
	poor := fakeNode(t)
	writeProcess(t, poor.proc, "self", rootUser, "0", "64", ownMap)
	write(t, filepath.Join(poor.proc, "sys/fs/fanotify/max_user_groups"), "1\n")
	poor.features = func() []fanotify.Feature {
		return []fanotify.Feature{
			feature("a", true, fanotify.ErrNotSupported), feature("b", false, fanotify.ErrNotSupported), feature("c", true, os.ErrInvalid),
		}
	}
	bare := fakeNode(t)
	bare.proc = t.TempDir()
	bare.runtimes = nil
	for name, n := range map[string]*node{"healthy": healthy, "poor": poor, "bare": bare} {
		t.Run(name, func(t *testing.T) {
			for _, c := range n.examine(t.Context(), fakeOptions(t)) {
				if c.Area == "" || c.Name == "" || c.Status == "" {
					t.Errorf("incomplete check %+v", c)
				}
				if c.Status != OK && (c.Remedy == "" || c.Detail == "") {
					t.Errorf("no detail or remedy in %+v", c)
				}
			}
		})
	}
}

func TestWithoutRootNothingFails(t *testing.T) {
	n := fakeNode(t)
	writeProcess(t, n.proc, "self", anyUser, "0", plenty, hostMap)
	n.features = func() []fanotify.Feature {
		f := feature("marks", true, nil)
		f.Probe = func() error { t.Error("probed without root"); return nil }
		return []fanotify.Feature{f}
	}
	checks := n.examine(t.Context(), fakeOptions(t))
	for _, c := range checks {
		if c.Status == Fail {
			t.Errorf("failed without root: %+v", c)
		}
	}
	want(t, find(t, checks, AreaKernel, "marks"), Unknown, "needs root", "sudo")
	want(t, find(t, checks, AreaPrivileges, "capabilities"), Unknown, "uid 1000", "sudo")
}

func TestWithoutProc(t *testing.T) {
	n := fakeNode(t)
	n.proc = t.TempDir()
	checks := n.examine(t.Context(), fakeOptions(t))
	want(t, find(t, checks, AreaPrivileges, "process"), Unknown, "no such file", "mount a proc")
	want(t, find(t, checks, AreaLimits, "RLIMIT_NOFILE"), Unknown, "could not be read", "root")
	want(t, find(t, checks, AreaLimits, "fs.fanotify.max_user_groups"), Unknown, "does not have it", "older kernels")
}

func TestAreasAreInOrder(t *testing.T) {
	order := []string{
		AreaConfiguration, AreaAgent, AreaKeeper, AreaPrivileges, AreaKernel, AreaLimits, AreaRuntimes, AreaHooks, AreaScanners,
	}
	var got []string
	for _, c := range fakeNode(t).examine(t.Context(), fakeOptions(t)) {
		got = append(got, c.Area)
	}
	if got = slices.Compact(got); !slices.Equal(got, order) {
		t.Errorf("areas %v, want %v", got, order)
	}
}

func TestProbe(t *testing.T) {
	refused := fmt.Errorf("mark: %w: operation not permitted", fanotify.ErrNotSupported)
	inconclusive := errors.New("no space for a scratch mount")
	for name, tt := range map[string]struct {
		err            error
		required       bool
		status         Status
		detail, remedy string
	}{
		"works":           {nil, true, OK, "works", ""},
		"required":        {refused, true, Fail, "since 9.9). Without it: something is lost", "upgrade"},
		"optional":        {refused, false, Warn, "not permitted", "upgrade"},
		"could not tell":  {inconclusive, true, Unknown, "no space", "again"},
		"optional, could": {inconclusive, false, Unknown, "no space", "again"},
	} {
		t.Run(name, func(t *testing.T) {
			f := feature("f", tt.required, tt.err)
			want(t, probe(&f, &process{}), tt.status, tt.detail, tt.remedy)
		})
	}
}

func TestPrivileges(t *testing.T) {
	for name, tt := range map[string]struct {
		p       process
		isAgent bool
		check   string
		status  Status
		detail  string
	}{
		"all":                 {process{caps: everything, init: true}, false, "CAP_SYS_ADMIN", OK, "fanotify"},
		"no SYS_ADMIN":        {process{caps: everything &^ (1 << 21), init: true}, false, "CAP_SYS_ADMIN", Fail, "lacks it"},
		"no SYS_PTRACE":       {process{caps: everything &^ (1 << 19), init: true}, false, "CAP_SYS_PTRACE", Fail, "lacks it"},
		"no DAC_READ_SEARCH":  {process{caps: everything &^ (1 << 2), init: true}, false, "CAP_DAC_READ_SEARCH", Fail, "lacks it"},
		"own user namespace":  {process{caps: everything}, false, "user namespace", Fail, "of its own"},
		"agent is not root":   {process{euid: 7, init: true}, true, "CAP_SYS_ADMIN", Fail, "lacks it"},
		"no root, not agent":  {process{euid: 7, init: true}, false, "capabilities", Unknown, "uid 7"},
		"agent, capabilities": {process{euid: 7, caps: everything, init: true}, true, "CAP_SYS_ADMIN", OK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, find(t, privileges(&tt.p, tt.isAgent), AreaPrivileges, tt.check), tt.status, tt.detail, "")
		})
	}
}

func TestReadProcessRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for name, change := range map[string]struct{ file, text string }{
		"no capabilities": {"status", "Uid:\t0\t0\t0\t0\n"},
		"no uid":          {"status", "CapEff:\t0\n"},
		"uid not number":  {"status", "CapEff:\t0\nUid:\t0\tx\t0\t0\n"},
		"no limit":        {"limits", "Max open files 1024\n"},
		"limit not":       {"limits", "Max open files 1024 many files\n"},
	} {
		t.Run(name, func(t *testing.T) {
			proc := t.TempDir()
			writeProcess(t, proc, "self", rootUser, allCaps, noLimit, hostMap)
			if _, err := readProcess(proc+"/self", "x"); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			write(t, filepath.Join(proc, "self", change.file), change.text)
			if _, err := readProcess(proc+"/self", "x"); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestReadProcessOfThisProcess(t *testing.T) {
	p, err := readProcess("/proc/self", "this process")
	if err != nil {
		t.Fatal(err)
	}
	if p.euid != os.Geteuid() || p.files == 0 {
		t.Errorf("read %+v, but the effective uid is %d", p, os.Geteuid())
	}
}
