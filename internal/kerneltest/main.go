package kerneltest

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// privateVariable tells a test binary that its mount namespace is its own.
const privateVariable = "ASSAY_KERNELTEST_PRIVATE"

// Main runs a package's tests for its TestMain, and fails if a goroutine is left
// after them. As root it first starts the test binary anew in a mount namespace
// of its own, which is gone with its last process: so no mount stays on the host,
// however the tests end. What the tests mount is then not in the host's mount
// table; a bind of one of the host's directories still is on a filesystem that
// the host has mounted, and so shared with it.
func Main(m *testing.M, options ...goleak.Option) {
	if os.Geteuid() == 0 && os.Getenv(privateVariable) == "" {
		fmt.Fprintf(os.Stderr, "kerneltest: %v: the mounts of these tests are the host's\\n", runPrivate())
	}
	goleak.VerifyTestMain(m, options...)
}

// runPrivate replaces the process by itself in a mount namespace of its own. It
// returns only if that fails.
func runPrivate() error {
	runtime.LockOSThread() // the namespace is the thread's; exec makes it the process's
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return fmt.Errorf("start again: %w", syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), privateVariable+"=1")))
}
