package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shimSockets is where shims listen, whatever containerd is configured to.
const shimSockets = "/run/containerd/s"

// finish ends the node with the test: its pods first, since shims outlive containerd.
// What does not end that way, after a test that has failed in the middle, or because of
// a defect, is ended by force, and said.
func (n *Node) finish(tb testing.TB) {
	tb.Helper()
	var errs []error
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(syscall.SIGCONT) // a test may have stopped it
		if n.Runs() {
			errs = append(errs, n.removePods(), n.endDaemon())
		}
	}
	errs = append(errs, n.conn.Close(), n.force())
	if err := errors.Join(errs...); err != nil {
		tb.Errorf("the node does not end as it should: %v", err)
	}
	if tb.Failed() {
		tb.Logf("end of containerd's log:\n%s", n.logTail())
	}
}

// removePods removes every pod there is.
func (n *Node) removePods() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods, err := n.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, p := range pods.GetItems() {
		if err := n.removePod(ctx, p.GetId()); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", p.GetMetadata().GetName(), err))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) endDaemon() error {
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may end by itself
	if err := n.awaitEnd(); err != nil {
		_ = n.cmd.Process.Kill()
		<-n.exited
		return err
	}
	return nil
}

// force ends whatever is left of the node's processes and mounts, and says what it was. A
// shim needs a moment after its pod's end.
func (n *Node) force() error {
	ends := time.NewTimer(10 * time.Second)
	defer ends.Stop()
	for len(n.processes()) > 0 {
		timeout := time.NewTimer(50 * time.Millisecond)
		select {
		case <-timeout.C:
			continue
		case <-ends.C:
			timeout.Stop()
		}
		break
	}
	var errs []error
	n.removeShimSockets()
	for _, pid := range slices.Concat(n.processes(), n.contained()) {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // for the message
		errs = append(errs, fmt.Errorf("process %d had to be killed: %s", pid, bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	}
	for _, at := range slices.Backward(n.mounts("")) {
		errs = append(errs, fmt.Errorf("%s was still mounted", at))
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", at, err))
		}
	}
	return errors.Join(errs...)
}

// processes returns the shims and whatever else has the node's directory among its
// arguments, but for the daemon itself.
func (n *Node) processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	var pids []int
	for _, dir := range dirs {
		// A process that is gone by now or a zombie reads as empty.
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		program, _, _ := bytes.Cut(args, []byte{0})
		if bytes.HasPrefix(program, []byte(n.bin)) && bytes.Contains(args, []byte(n.dir+"/")) {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // the glob says so
			pids = append(pids, pid)
		}
	}
	return pids
}

// cgroup returns the cgroup of the node's containers.
func (n *Node) cgroup() string { return filepath.Join(n.suite.Cgroup(), filepath.Base(n.dir)) }

// contained returns the processes in the node's cgroups.
func (n *Node) contained() []int {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup()) // the pattern is right
	var pids []int
	for _, root := range append(roots, "/sys/fs/cgroup"+n.cgroup()) {
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil //nolint:nilerr // it is gone
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}

// removeShimSockets removes the sockets of shims that are killed: they are not in the
// node's directory.
func (n *Node) removeShimSockets() {
	files, _ := filepath.Glob(filepath.Join(n.dir, "state/io.containerd.runtime.v2.task/k8s.io/*/bootstrap.json"))
	for _, file := range files {
		var bootstrap struct {
			Address string `json:"address"`
		}
		text, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(text, &bootstrap) != nil {
			continue
		}
		if path, ok := strings.CutPrefix(bootstrap.Address, "unix://"); ok && filepath.Dir(path) == shimSockets {
			_ = os.Remove(path)
		}
	}
}

// mounts returns the mount points below the node's directory that have a word in them.
func (n *Node) mounts(word string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.dir+"/") && strings.Contains(f[4], word) {
			found = append(found, f[4])
		}
	}
	return found
}
