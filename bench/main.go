// Command bench measures what the gate costs, in one run against its floor: the
// time of an open, unguarded, under a listener that only allows, and under the
// agent; and the time that the hook adds to `runc run`. It prints medians and
// ratios; absolute times are the machine's, ratios are what to compare.
//
// It owns scratch overlays and processes of its own, all in a private mount
// namespace that ends with it. It needs root, cc and runc.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inNamespace marks the process that already has its own mount namespace.
const inNamespace = "ASSAY_BENCH_NAMESPACE"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	rounds := flag.Int("rounds", 7, "measure each variant `N` times, in turn")
	opens := flag.Int("opens", 40000, "opens in each measurement, over all openers")
	starts := flag.Int("starts", 40, "container starts with and without the hook")
	bin := flag.String("bin", "bin", "directory of assayd and assay-hook")
	flag.Parse()
	switch flag.Arg(0) { // the roles that this program plays for itself
	case "agent":
		return agent(flag.Args()[1:])
	case "":
	default:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("permission marks need root")
	}
	if os.Getenv(inNamespace) == "" {
		return reexec()
	}
	scratch, err := os.MkdirTemp("", "assay-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	defer unmountBelow(scratch)
	binaries, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	if err := describeMachine(); err != nil {
		return err
	}
	if err := benchOpens(scratch, *rounds, *opens); err != nil {
		return fmt.Errorf("opens: %w", err)
	}
	if err := benchStarts(scratch, binaries, *starts); err != nil {
		return fmt.Errorf("container starts: %w", err)
	}
	return nil
}

// reexec starts this program again in a mount namespace of its own: whatever
// happens, no mount is left.
func reexec() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("%w (apt-get install util-linux)", err)
	}
	args := append([]string{"unshare", "--mount", "--propagation", "private", "--", self}, os.Args[1:]...)
	return syscall.Exec(unshare, args, append(os.Environ(), inNamespace+"=1"))
}

func describeMachine() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, found := strings.CutPrefix(line, "model name"); found {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	fmt.Printf("machine: %s, %d CPUs, Linux %s\n\n", model, cpus.Count(), unix.ByteSliceToString(u.Release[:]))
	return nil
}

// unmountBelow unmounts what a failed measurement left below dir.
func unmountBelow(dir string) {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir) {
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
}
