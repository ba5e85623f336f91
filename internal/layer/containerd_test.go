package layer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// fakeContainerd answers for one snapshot.
type fakeContainerd struct {
	mounts  []ContainerdMount
	parents map[string]string
	diffs   []string
	fail    error
	asked   int
}

func (f *fakeContainerd) Snapshot(_ context.Context, container string) (ContainerdSnapshot, error) {
	if container != "container" {
		return ContainerdSnapshot{}, errors.New("no such container")
	}
	return ContainerdSnapshot{Snapshotter: "overlayfs", Key: "key", Config: sha("c")}, nil
}

func (f *fakeContainerd) Mounts(context.Context, string, string) ([]ContainerdMount, error) {
	return f.mounts, f.fail
}

func (f *fakeContainerd) Parent(_ context.Context, _, key string) (string, error) {
	if f.asked++; f.asked > maxLayers+1 {
		panic("no end of questions")
	}
	parent, ok := f.parents[key]
	if !ok {
		return "", fmt.Errorf("snapshot %s: not found", key)
	}
	return parent, nil
}

func (f *fakeContainerd) DiffIDs(context.Context, string) ([]string, error) { return f.diffs, f.fail }

// snapshots makes a snapshot "key" over n committed ones, and returns their
// directories, topmost first.
func snapshots(t *testing.T, n int) (*fakeContainerd, []string) {
	t.Helper()
	root := t.TempDir()
	f := &fakeContainerd{parents: map[string]string{}}
	dirs := make([]string, n)
	chain := ""
	for i := range n {
		diff := "sha256:" + fmt.Sprintf("%064x", i+1)
		f.diffs = append(f.diffs, diff)
		below := chain
		chain = chainOn(chain, diff)
		f.parents[chain] = below
		dirs[n-1-i] = filepath.Join(root, fmt.Sprint(i+1), "fs")
		mkdir(t, dirs[n-1-i])
	}
	f.parents["key"] = chain
	f.mounts = []ContainerdMount{{Type: "overlay", Options: []string{
		"index=off", "workdir=/w", "upperdir=/u", "lowerdir=" + strings.Join(dirs, ":"),
	}}}
	return f, dirs
}

// topFirst is what the directories of n layers should be called.
func topFirst(diffs []string) []string {
	want := make([]string, len(diffs))
	for i, diff := range diffs {
		want[len(diffs)-1-i] = diff
	}
	return want
}

func TestContainerd(t *testing.T) {
	for _, n := range []int{1, 3, 63, 127} {
		f, dirs := snapshots(t, n)
		c := NewContainerd(hostTree(t), f).For("container")
		wantDigests(t, c, dirs, topFirst(f.diffs)...)
		wantDigests(t, c, []string{"/elsewhere", dirs[n-1]}, "", f.diffs[0])
	}
}

// TestContainerdUnknown: what is not proven to be an image's layer has no digest;
// what does not go together is an error.
func TestContainerdUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(f *fakeContainerd)
		lowest bool // keeps its digest
		failed bool
	}{
		"another image":       {spoil: func(f *fakeContainerd) { f.diffs[0] = sha("f") }},
		"another upper layer": {spoil: func(f *fakeContainerd) { f.diffs[1] = sha("f") }, lowest: true},
		"mapped snapshots": {spoil: func(f *fakeContainerd) {
			top := f.parents["key"]
			f.parents["key"], f.parents[top+"-1000-65536"] = top+"-1000-65536", f.parents[top]
		}, lowest: true},
		"not an overlay":     {spoil: func(f *fakeContainerd) { f.mounts[0].Type = "bind" }, failed: true},
		"erofs below it":     {spoil: func(f *fakeContainerd) { f.mounts = append([]ContainerdMount{{Type: "erofs"}}, f.mounts...) }, failed: true},
		"no lower directory": {spoil: func(f *fakeContainerd) { f.mounts[0].Options = nil }, failed: true},
		"a layer more":       {spoil: func(f *fakeContainerd) { f.diffs = append(f.diffs, sha("f")) }, failed: true},
		"an ancestor less":   {spoil: func(f *fakeContainerd) { f.parents["key"] = f.parents[f.parents["key"]] }, failed: true},
		"an unknown parent":  {spoil: func(f *fakeContainerd) { f.parents["key"] = "gone" }, failed: true},
		"a circle":           {spoil: func(f *fakeContainerd) { f.parents["key"] = "key" }, failed: true},
		"no digests":         {spoil: func(f *fakeContainerd) { f.diffs[0] = "latest" }, failed: true},
		"data-only layers":   {spoil: func(f *fakeContainerd) { f.mounts[0].Options = []string{"lowerdir=/a::/b"} }, failed: true},
		"containerd is gone": {spoil: func(f *fakeContainerd) { f.fail = errors.New("connection refused") }, failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			f, dirs := snapshots(t, 2)
			low := f.diffs[0]
			c.spoil(f)
			r := NewContainerd(hostTree(t), f).For("container")
			if c.failed {
				if got, err := r.Digests(t.Context(), dirs); err == nil {
					t.Errorf("%q, want an error", got)
				}
				return
			}
			if !c.lowest {
				low = ""
			}
			wantDigests(t, r, dirs, "", low)
		})
	}
}
