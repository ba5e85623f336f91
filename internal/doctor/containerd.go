package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/containerd"
)

// containerd examines the containerd whose Kubernetes containers are to be guarded.
func (n *node) containerd(ctx context.Context, o *Options) []Check {
	check := Check{Area: AreaRuntimes, Name: "containerd", Status: OK}
	if _, err := os.Stat(o.Containerd.Socket); errors.Is(err, fs.ErrNotExist) {
		check.Detail = fmt.Sprintf("is not here: there is no %s (containerd.socket)", o.Containerd.Socket)
		return []Check{check}
	}
	ask := o.Containerd
	ask.Patience = o.Timeout
	report, err := n.probe(ctx, ask)
	if err != nil {
		describeContainerdFailure(&check, err)
		return []Check{check}
	}
	total := 0
	for _, count := range report.InUse {
		total += count
	}
	check.Detail = fmt.Sprintf("%s answers at %s; containers of Kubernetes' in namespace %s: %d",
		report.Version, o.Containerd.Socket, o.Containerd.Namespace, total)
	if !report.Kubernetes {
		check.Status = Warn
		check.Detail += "; its service for Kubernetes (CRI) is not running, and no other containers of containerd's are guarded"
		check.Remedy = "if Kubernetes is to use it, remove cri from disabled_plugins in containerd's configuration, and restart it"
		return []Check{check}
	}
	return append([]Check{check, describeNRI(&report)}, describeSnapshotters(&report)...)
}

// probeContainerd asks containerd what it is.
func probeContainerd(ctx context.Context, o containerd.Options) (containerd.Report, error) {
	client, err := containerd.New(o)
	if err != nil {
		return containerd.Report{}, err
	}
	report, err := client.Probe(ctx)
	return report, errors.Join(err, client.Close())
}

// describeContainerdFailure explains why containerd gave no answer.
func describeContainerdFailure(check *Check, err error) {
	check.Status, check.Detail = Fail, err.Error()
	check.Remedy = "find out what containerd is doing (systemctl status containerd, journalctl -u containerd)"
	switch {
	case errors.Is(err, fs.ErrPermission):
		check.Status, check.Remedy = Unknown, runAsRoot
	case errors.Is(err, unix.ECONNREFUSED):
		check.Status, check.Remedy = Warn, "start containerd (systemctl start containerd), or remove the socket if it is no longer used"
	}
}

// describeNRI says whether the agent can be told of containers.
func describeNRI(r *containerd.Report) Check {
	check := Check{Area: AreaRuntimes, Name: "containerd's NRI", Status: OK, Detail: "is part of this containerd; only its socket tells whether it is enabled"}
	if !r.NRI {
		check.Status = Warn
		check.Detail = "did not start, so that containerd tells the agent of no containers"
		check.Remedy = "remove io.containerd.nri.v1.nri from disabled_plugins in containerd's configuration, or use containerd 1.7 or later"
	}
	return check
}

// describeSnapshotters says what can be done for the containers of each snapshotter
// that is in use, or of those that can be used if there are no containers.
func describeSnapshotters(r *containerd.Report) []Check {
	if len(r.InUse) == 0 {
		return []Check{{
			Area: AreaRuntimes, Name: "containerd's snapshotters", Status: OK,
			Detail: "no containers yet; it has " + strings.Join(slices.Sorted(slices.Values(r.Snapshotters)), ", "),
		}}
	}
	var checks []Check
	for _, name := range slices.Sorted(maps.Keys(r.InUse)) {
		checks = append(checks, describeSnapshotter(name, r.InUse[name]))
	}
	return checks
}

// describeSnapshotter says what can be done for n containers of a snapshotter.
func describeSnapshotter(name string, n int) Check {
	const overlayfs = `set snapshotter = "overlayfs" under [plugins.'io.containerd.cri.v1.images'] in containerd's configuration`
	check := Check{Area: AreaRuntimes, Name: "snapshotter " + name, Remedy: overlayfs}
	fit, why := containerd.FitOf(name)
	switch fit {
	case containerd.Full:
		check.Status, check.Remedy = OK, ""
		check.Detail = fmt.Sprintf("containers %d; they can be guarded, and share what is known of their images' layers", n)
	case containerd.Coarse:
		check.Status = Warn
		check.Detail = fmt.Sprintf("containers %d; they can be guarded, but each has its files scanned anew: %s", n, why)
	case containerd.Refused:
		check.Status = Fail
		check.Detail = fmt.Sprintf("containers %d; they cannot be guarded: %s", n, why)
		check.Remedy += ", or exempt these containers' namespaces"
	case containerd.Unproven:
		check.Status = Warn
		check.Detail = fmt.Sprintf("containers %d; whether they can be guarded is not known: %s", n, why)
		check.Remedy = "check that \"assay status\" lists them before you rely on it, or " + overlayfs
	}
	return check
}
