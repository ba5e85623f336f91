// Package harness runs the built agent against real container runtimes: it
// starts agents, builds an image, runs containers with podman, runc and crun, and
// checks at the end that nothing of it is left on the machine.
//
// It owns processes, mounts, cgroups and files that a test makes. It must not own
// what a test expects: the package above asserts what a container experienced and
// which records the agent wrote. It uses the product as a user does, by binaries,
// flags, files and JSON, and never links its packages.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Suite is what the tests of one run share. Its methods fail the test that
// they are given.
type Suite struct {
	dir    string // scratch directory; everything of the run lives below it
	bin    string // directory of the binaries under test
	cgroup string // name of the cgroup that holds every container of the run
	ids    atomic.Int64

	image  func() (*Image, error)
	podman func() (*podman, error)
	crun   func() (string, error)
}

// Main runs m between setting the suite up and checking that nothing is left. It
// hands the suite to use before the first test and returns the exit code.
func Main(m *testing.M, use func(*Suite)) int {
	s, err := newSuite()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	use(s)
	code := m.Run()
	if err := s.close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: left behind:", err)
		return 1
	}
	return code
}

func newSuite() (*Suite, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("end-to-end tests start containers and an agent with CAP_SYS_ADMIN: run them as root")
	}
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "assay-e2e-")
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	s := &Suite{dir: dir, bin: bin, cgroup: filepath.Base(dir)}
	s.image = sync.OnceValues(func() (*Image, error) { return buildImage(filepath.Join(dir, "image")) })
	s.podman = sync.OnceValues(s.setUpPodman)
	s.crun = sync.OnceValues(s.findCrun)
	return s, nil
}

// binaries returns the directory of the binaries under test: $ASSAY_BIN, or the
// repository's bin/, built first.
func binaries() (string, error) {
	if dir := os.Getenv("ASSAY_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	// The suites are packages of this module at different depths, below the repository.
	module, err := exec.Command("go", "env", "GOMOD").Output() //nolint:noctx // ends at once
	if err != nil {
		return "", fmt.Errorf("where is the repository: %w", err)
	}
	root := filepath.Dir(filepath.Dir(string(module)))
	build := exec.Command("make", "-s", "-C", root, "build") //nolint:noctx // ends with the run
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binaries under test: %w\n%s", err, out)
	}
	return filepath.Join(root, "bin"), nil
}

// Bin returns the path of one of the binaries under test.
func (s *Suite) Bin(name string) string { return filepath.Join(s.bin, name) }

// Cgroup returns the cgroup that every container of the run has to be in, from the root
// of the hierarchies.
func (s *Suite) Cgroup() string { return "/" + s.cgroup }

// Scratch returns a new directory for tb, removed when tb ends. It is a real
// directory below the suite's own, on the file system that overlays need.
func (s *Suite) Scratch(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp(s.dir, "t-") //nolint:usetesting // TempDir may be a tmpfs, and its name is too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("scratch directory: %v", err)
		}
	})
	return dir
}

// memory returns a new directory on a tmpfs, as /run is where the agent has its
// socket, gone when tb ends.
func (s *Suite) memory(tb testing.TB) string {
	tb.Helper()
	dir := s.Scratch(tb)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		// A process that ends no longer shows what it was, and may still have files open.
		if err := eventually(ctx, patience, func() error { return unix.Unmount(dir, 0) }); err != nil {
			tb.Errorf("unmount the socket's directory: %v", err)
		}
	})
	return dir
}

// Require ends tb if err says that this machine lacks a feature: it fails, unless
// ASSAY_ALLOW_SKIP names the test (patterns as of path.Match, by commas). It is
// the only way in which a test of this module may skip.
func Require(tb testing.TB, feature string, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	for _, pattern := range strings.FieldsFunc(os.Getenv("ASSAY_ALLOW_SKIP"), isSeparator) {
		top, _, _ := strings.Cut(tb.Name(), "/")
		for _, name := range []string{tb.Name(), top} {
			if ok, matchErr := filepath.Match(pattern, name); ok && matchErr == nil {
				tb.Skipf("%s: %v", feature, err)
			}
		}
	}
	tb.Fatalf("%s: %v (ASSAY_ALLOW_SKIP=%s lets this test skip)", feature, err, tb.Name())
}

func isSeparator(r rune) bool { return r == ',' || r == ' ' }

// Eventually waits until done returns nil, and fails tb with its last error after
// a time that only a defect reaches.
func Eventually(tb testing.TB, what string, done func() error) {
	tb.Helper()
	if err := eventually(tb.Context(), 20*time.Second, done); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}

// eventually polls, because what it waits for happens in other processes.
func eventually(ctx context.Context, patience time.Duration, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
