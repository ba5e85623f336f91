package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/containerd"
)

// answering is a node whose containerd answers so, and options that name its socket.
func answering(t *testing.T, r containerd.Report, err error) (*node, *Options) {
	t.Helper()
	n, o := fakeNode(t), fakeOptions(t)
	write(t, o.Containerd.Socket, "")
	o.Containerd.Namespace = "k8s.io"
	n.probe = func(_ context.Context, got containerd.Options) (containerd.Report, error) {
		if want := (containerd.Options{Socket: o.Containerd.Socket, Namespace: "k8s.io", Patience: o.Timeout}); got != want {
			t.Errorf("asked %+v, want %+v", got, want)
		}
		return r, err
	}
	return n, o
}

func TestContainerd(t *testing.T) {
	healthy := func() containerd.Report {
		return containerd.Report{
			Version: "2.2.9", Kubernetes: true, NRI: true,
			Snapshotters: []string{"overlayfs", "native"}, InUse: map[string]int{"overlayfs": 7},
		}
	}
	for name, tt := range map[string]struct {
		change         func(r *containerd.Report)
		check          string
		status         Status
		detail, remedy string
	}{
		"answers":        {func(*containerd.Report) {}, "containerd", OK, "2.2.9 answers at ", ""},
		"counts":         {func(r *containerd.Report) { r.InUse["native"] = 3 }, "containerd", OK, "in namespace k8s.io: 10", ""},
		"no Kubernetes":  {func(r *containerd.Report) { r.Kubernetes = false }, "containerd", Warn, "(CRI) is not running", "disabled_plugins"},
		"NRI":            {func(*containerd.Report) {}, "containerd's NRI", OK, "only its socket tells", ""},
		"no NRI":         {func(r *containerd.Report) { r.NRI = false }, "containerd's NRI", Warn, "did not start", "1.7 or later"},
		"overlayfs":      {func(*containerd.Report) {}, "snapshotter overlayfs", OK, "containers 7; they can be guarded, and share", ""},
		"erofs":          {func(r *containerd.Report) { r.InUse["erofs"] = 1 }, "snapshotter erofs", Warn, "scanned anew: its layers", `"overlayfs"`},
		"fuse-overlayfs": {func(r *containerd.Report) { r.InUse["fuse-overlayfs"] = 1 }, "snapshotter fuse-overlayfs", Fail, "cannot be guarded: ", "or exempt"},
		"devmapper":      {func(r *containerd.Report) { r.InUse["devmapper"] = 2 }, "snapshotter devmapper", Fail, "are no overlays", "or exempt"},
		"another":        {func(r *containerd.Report) { r.InUse["new"] = 2 }, "snapshotter new", Warn, "is not known", "assay status"},
		"nothing yet":    {func(r *containerd.Report) { r.InUse = nil }, "containerd's snapshotters", OK, "it has native, overlayfs", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := healthy()
			tt.change(&r)
			n, o := answering(t, r, nil)
			want(t, find(t, n.examine(t.Context(), o), AreaRuntimes, tt.check), tt.status, tt.detail, tt.remedy)
		})
	}
}

func TestContainerdFails(t *testing.T) {
	for name, tt := range map[string]struct {
		err    error
		status Status
		remedy string
	}{
		"hangs":     {containerd.ErrHangs, Fail, "journalctl -u containerd"},
		"forbidden": {fmt.Errorf("%w: %w", containerd.ErrUnreachable, fs.ErrPermission), Unknown, "sudo"},
	} {
		t.Run(name, func(t *testing.T) {
			n, o := answering(t, containerd.Report{}, tt.err)
			want(t, find(t, n.containerd(t.Context(), o), AreaRuntimes, "containerd"), tt.status, tt.err.Error(), tt.remedy)
		})
	}
}

// TestContainerdItself: the three ways in which nobody answers.
func TestContainerdItself(t *testing.T) {
	n, o := hostNode(), fakeOptions(t)
	o.Timeout = 50 * time.Millisecond
	check := func(status Status, detail, remedy string) {
		t.Helper()
		checks := n.containerd(t.Context(), o)
		want(t, find(t, checks, AreaRuntimes, "containerd"), status, detail, remedy)
		if len(checks) != 1 {
			t.Errorf("%+v", checks)
		}
	}
	check(OK, "is not here: there is no "+o.Containerd.Socket, "")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Containerd.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	check(Fail, "does not answer in time", "journalctl")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(Warn, "connection refused", "or remove the socket")
}
