package scanners_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

// goleak is what notices a scanner that was built and not closed: each runs a
// goroutine until then.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func clamdAt(name, address string) tenant.Scanner {
	return tenant.Scanner{Name: name, Clamd: &tenant.Clamd{Address: address, Connections: 1}}
}

func hashlistOf(name string, files ...string) tenant.Scanner {
	return tenant.Scanner{Name: name, Hashlist: &tenant.Hashlist{Files: files}}
}

func TestBuild(t *testing.T) {
	// Nobody accepts on this socket: a scanner that is down must not prevent building.
	socket := filepath.Join(t.TempDir(), "clamd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	built, err := scanners.Build([]tenant.Scanner{hashlistOf("hashes"), clamdAt("clamav", "unix:"+socket)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hashes", "clamav"} {
		if s, ok := built[name]; !ok || s.Name != name || s.Scanner == nil {
			t.Errorf("scanner %q is %+v", name, s)
		}
	}
	if err := built["hashes"].Health(t.Context()); err != nil {
		t.Errorf("hashlist: %v", err)
	}
	if err := built["clamav"].Health(t.Context()); !errors.Is(err, scanner.ErrUnavailable) {
		t.Errorf("clamd that is down reports %v, want %v", err, scanner.ErrUnavailable)
	}
	if err := scanners.Close(built); err != nil {
		t.Fatal(err)
	}
	if err := built["hashes"].Health(t.Context()); err == nil {
		t.Error("a closed scanner calls itself healthy")
	}
}

func TestBuildIsTransactional(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.hsb")
	if err := os.WriteFile(bad, []byte("this is no hash\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := hashlistOf("good")
	for name, tt := range map[string]struct {
		last tenant.Scanner
		want []string
	}{
		"bad list":     {hashlistOf("last", bad), []string{`scanner "last"`, bad}},
		"bad address":  {clamdAt("last", "ftp:x"), []string{`scanner "last"`, "ftp:x"}},
		"no driver":    {tenant.Scanner{Name: "last"}, []string{`scanner "last"`, scanners.ErrNoDriver.Error()}},
		"same name":    {hashlistOf("good"), []string{`scanner "good"`, "twice"}},
		"missing list": {hashlistOf("last", bad+".missing"), []string{`scanner "last"`, bad + ".missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			built, err := scanners.Build([]tenant.Scanner{good, tt.last}, nil)
			if err == nil || built != nil {
				t.Fatalf("built %v, error %v; want an error only", built, err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not mention %q", err, part)
				}
			}
		})
	}
}

func TestDriver(t *testing.T) {
	for want, cfg := range map[string]tenant.Scanner{
		"clamd": clamdAt("x", ""), "hashlist": hashlistOf("x"), "": {Name: "x"},
	} {
		if got := scanners.Driver(cfg); got != want {
			t.Errorf("driver of %+v is %q, want %q", cfg, got, want)
		}
	}
}
