package guard

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/assay-project/assay/internal/tenant"
)

// containerID is of the form that runtimes generate.
const containerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

const (
	storage  = "/var/lib/containers/storage"
	merged   = storage + "/overlay/4bf1a0/merged"
	userdata = storage + "/overlay-containers/" + containerID + "/userdata"
)

// hostTable is a podman host: its own filesystems, and what podman mounts there
// for a container. The overlay's directory is not named after the container.
const hostTable = `
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
23 21 0:22 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
24 22 0:23 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw
25 21 0:20 / /proc rw shared:4 - proc proc rw
26 21 0:21 / /sys rw shared:6 - sysfs sysfs rw
27 21 8:2 / /srv/data rw shared:7 - ext4 /dev/sda2 rw
28 21 8:3 / /tmp rw shared:8 - ext4 /dev/sda3 rw
29 21 8:4 / /mnt/with\040space rw shared:9 - xfs /dev/sda4 rw
40 21 0:60 / ` + userdata + `/shm rw,nosuid shared:40 - tmpfs shm rw,size=64000k
41 21 0:61 / ` + merged + ` rw shared:41 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w
`

// containerTable is the container's namespace before the pivot: the host's
// mounts, and two stacked at its rootfs, of which the top one is its own.
const containerTable = `
121 100 8:1 / / rw,relatime - ext4 /dev/sda1 rw
124 121 0:23 / /dev/shm rw - tmpfs tmpfs rw
141 121 0:61 / ` + merged + ` rw - overlay overlay rw
142 141 0:61 / ` + merged + ` rw - overlay overlay rw
150 142 0:70 / ` + merged + `/proc rw - proc proc rw
151 142 0:71 / ` + merged + `/dev rw - tmpfs tmpfs rw
152 151 0:72 / ` + merged + `/dev/pts rw - devpts devpts rw
153 151 0:60 / ` + merged + `/dev/shm rw - tmpfs shm rw
154 142 0:22 /assay/hosts ` + merged + `/etc/hosts rw - tmpfs tmpfs rw
155 142 8:1 /var/lib/volume ` + merged + `/data rw - ext4 /dev/sda1 rw
156 142 8:2 /part ` + merged + `/srv rw - ext4 /dev/sda2 rw
157 142 0:21 / ` + merged + `/sys ro - sysfs sysfs rw
158 157 0:26 / ` + merged + `/sys/fs/cgroup ro - cgroup2 cgroup rw
159 142 8:4 / ` + merged + `/mnt/with\040space rw - xfs /dev/sda4 rw
161 160 0:81 / ` + merged + `/late/below rw - tmpfs none rw
160 142 0:80 / ` + merged + `/late rw - tmpfs none rw
`

func parsed(tb testing.TB, table string) []*mountinfo.Info {
	tb.Helper()
	mounts, err := parseMounts(strings.NewReader(strings.TrimPrefix(table, "\n")))
	if err != nil {
		tb.Fatal(err)
	}
	return mounts
}

func podman(tb testing.TB) *layout {
	tb.Helper()
	return &layout{id: containerID, rootfs: merged, onHost: merged, mounts: parsed(tb, containerTable), host: parsed(tb, hostTable)}
}

// TestLayout says for every mount of a podman container whether it is below the
// rootfs, where the container sees it, and how it is marked.
func TestLayout(t *testing.T) {
	l := podman(t)
	top := l.find(142)
	if top == nil || l.find(999) != nil {
		t.Fatal("mounts are not found by their ids")
	}
	if err := l.checkRootfs(top); err != nil {
		t.Errorf("the rootfs: %v", err)
	}
	want := map[string]struct {
		kind MarkKind
		why  string
	}{
		"/proc":           {MarkNone, "kernel filesystem"},
		"/dev":            {MarkSuperblock, "alone"},
		"/dev/pts":        {MarkNone, "kernel filesystem"},
		"/dev/shm":        {MarkSuperblock, "alone"}, // on the host, but in the container's own directory
		"/etc/hosts":      {MarkMount, "shared with the host at /run"},
		"/data":           {MarkMount, "shared with the host at /"},
		"/srv":            {MarkMount, "shared with the host at /srv/data"},
		"/sys":            {MarkNone, "kernel filesystem"},
		"/sys/fs/cgroup":  {MarkNone, "kernel filesystem"},
		"/mnt/with space": {MarkMount, "shared with the host at /mnt/with space"},
		"/late":           {MarkSuperblock, "alone"},
		"/late/below":     {MarkSuperblock, "alone"},
	}
	found := l.below(top)
	if len(found) != len(want) {
		t.Errorf("%d mounts are below the rootfs, want %d", len(found), len(want))
	}
	for _, m := range found {
		kind, why := l.choose(m, &tenant.Tenant{VolumeMarks: tenant.VolumeMount})
		w, known := want[l.destination(m)]
		if !known || kind != w.kind || !strings.Contains(why, w.why) {
			t.Errorf("%s: %s because %q, want %+v", l.destination(m), kind, why, w)
		}
	}
}

func TestChooseByPolicy(t *testing.T) {
	l := podman(t)
	p := &tenant.Tenant{VolumeMarks: tenant.VolumeSuperblock, ExcludeMounts: []string{"/srv/x", "/late", "/dev/shm/"}}
	for id, want := range map[int]struct {
		kind MarkKind
		why  string
	}{
		156: {MarkSuperblock, "volumeMarks"},       // the host has it at /srv/data: no filesystem it lives on
		155: {MarkMount, "does not apply"},         // the host's root
		154: {MarkMount, "does not apply"},         // the host's /run
		159: {MarkSuperblock, "volumeMarks"},       //
		160: {MarkNone, "excluded"},                //
		161: {MarkSuperblock, "alone"},             // below an excluded one, but another mount
		153: {MarkSuperblock, "alone"},             // an exclusion is exact
		150: {MarkNone, "kernel filesystem"},       //
		151: {MarkSuperblock, "container's alone"}, //
	} {
		if kind, why := l.choose(l.find(id), p); kind != want.kind || !strings.Contains(why, want.why) {
			t.Errorf("%s: %s because %q, want %+v", l.destination(l.find(id)), kind, why, want)
		}
	}
}

// TestChooseBackingFilesystem: a superblock mark on the filesystem that overlays
// have their layers on would see the kernel's own opens of those.
func TestChooseBackingFilesystem(t *testing.T) {
	l := podman(t)
	l.host = append(parsed(t, `
30 21 8:5 / /var/lib/containers rw - xfs /dev/sda5 rw
42 21 0:62 / /var/lib/containers/storage/overlay/x/merged rw - overlay overlay rw,lowerdir=/var/lib/containers/storage/overlay/l/A,upperdir=/var/lib/containers/storage/overlay/x/diff,workdir=/var/lib/containers/storage/overlay/x/work`), l.host...)
	l.mounts = append(l.mounts, parsed(t, `170 142 8:5 /storage/volumes/v/_data `+merged+`/vol rw - xfs /dev/sda5 rw`)...)
	if kind, why := l.choose(l.find(170), &tenant.Tenant{VolumeMarks: tenant.VolumeSuperblock}); kind != MarkMount {
		t.Errorf("%s because %q: it holds the layers of every container", kind, why)
	}
}

// TestChosenIDs: an id that somebody chose is no proof that a mount is the
// container's own.
func TestChosenIDs(t *testing.T) {
	for _, id := range []string{"data", "tmp", "run", "shm", "srv", "abc"} {
		l := podman(t)
		l.id = id
		for _, mount := range []int{153, 154, 155, 156} {
			if kind, why := l.choose(l.find(mount), &tenant.Tenant{VolumeMarks: tenant.VolumeMount}); kind != MarkMount {
				t.Errorf("container %q: %s of %s because %q", id, kind, l.destination(l.find(mount)), why)
			}
		}
	}
}

// TestRootfsAfterThePivot: a container that runs has its root at "/", and its
// overlay is mounted on the host as before.
func TestRootfsAfterThePivot(t *testing.T) {
	l := podman(t)
	before := l.checkRootfs(l.find(142))
	l.rootfs = "/"
	l.mounts = parsed(t, strings.ReplaceAll(strings.ReplaceAll(containerTable, merged+" ", "/ "), merged, ""))
	if after := l.checkRootfs(l.find(142)); before != nil || after != nil {
		t.Errorf("before the pivot: %v; after it: %v", before, after)
	}
	if kind, why := l.choose(l.find(153), &tenant.Tenant{}); kind != MarkSuperblock || l.destination(l.find(153)) != "/dev/shm" {
		t.Errorf("/dev/shm: %s because %q", kind, why)
	}
}

// TestAnnouncedAfterThePivot: an announcement may call the root "/", as the
// container does. That makes no mount of the host the container's own.
func TestAnnouncedAfterThePivot(t *testing.T) {
	l := podman(t)
	l.rootfs, l.onHost = "/", ""
	l.mounts = parsed(t, strings.ReplaceAll(strings.ReplaceAll(containerTable, merged+" ", "/ "), merged, ""))
	for _, id := range []int{154, 155, 156, 159} {
		if kind, why := l.choose(l.find(id), &tenant.Tenant{}); kind != MarkMount {
			t.Errorf("%s: %s because %q", l.destination(l.find(id)), kind, why)
		}
	}
}

func TestCheckRootfs(t *testing.T) {
	for name, tc := range map[string]struct {
		mount, says string
	}{
		"not an overlay": {`142 141 8:1 /x ` + merged + ` rw - ext4 /dev/sda1 rw`, "not an overlay"},
		"fuse-overlayfs": {`142 141 0:90 / ` + merged + ` rw - fuse.fuse-overlayfs x rw`, "not an overlay"},
		"a part":         {`142 141 0:61 /part ` + merged + ` rw - overlay overlay rw`, "a part"},
		"another's too":  {`142 141 0:95 / ` + merged + ` rw - overlay overlay rw`, "also mounted on the host at /elsewhere"},
	} {
		l := podman(t)
		l.host = append(l.host, parsed(t, `95 21 0:95 / /elsewhere rw - overlay overlay rw`)...)
		err := l.checkRootfs(parsed(t, tc.mount)[0])
		var unsuitable *rootfsError
		if !errors.As(err, &unsuitable) || !strings.Contains(err.Error(), tc.says) || unsuitable.remedy == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, tc := range []struct {
		path, dir string
		want      bool
	}{
		{"/a", "/a", true},
		{"/a/b", "/a", true},
		{"/a/b", "/a/", true},
		{"/ab", "/a", false},
		{"/a", "/a/b", false},
		{"/a", "/", true},
		{"/", "/", true},
		{"/", "/a", false},
	} {
		if got := within(tc.path, tc.dir); got != tc.want {
			t.Errorf("%s within %s: %v", tc.path, tc.dir, got)
		}
	}
}

func TestIsSlow(t *testing.T) {
	for fstype, want := range map[string]bool{
		"fuse": true, "fuse.bindfs": true, "fuseblk": true, "nfs4": true, "cifs": true,
		"ext4": false, "tmpfs": false, "overlay": false, "fusectl": false,
	} {
		if got := isSlow(fstype); got != want {
			t.Errorf("%s: %v", fstype, got)
		}
	}
}

// FuzzParseMounts reads a mount table and lays it out with every mount as the
// rootfs: whatever a table says, that ends and does not panic.
func FuzzParseMounts(f *testing.F) {
	for _, seed := range []string{
		hostTable, containerTable,
		"1 1 0:1 / / rw - overlay o rw\n2 2 0:1 / /a rw - tmpfs o rw\n",
		"1 2 0:1 / /a rw - overlay o rw\n2 1 0:1 / /b rw - overlay o rw\n",
		"9 1 0:1 /\\134 /a\\040b//deleted rw shared:1 master:2 - proc x rw\n",
		"1 1 99999999999:1 / / rw - overlay o rw\n", "1 1", "-", " - - -", "1 1 0:1 / / rw -",
	} {
		f.Add([]byte(strings.TrimPrefix(seed, "\n")))
	}
	f.Fuzz(func(t *testing.T, table []byte) {
		mounts, err := parseMounts(bytes.NewReader(table))
		if err != nil {
			return
		}
		p := &tenant.Tenant{VolumeMarks: tenant.VolumeSuperblock, ExcludeMounts: []string{"/data"}}
		for _, top := range mounts[:min(len(mounts), 8)] {
			l := &layout{id: containerID, rootfs: top.Mountpoint, mounts: mounts, host: mounts}
			if err := l.checkRootfs(top); err == nil && top.FSType != "overlay" {
				t.Fatalf("%+v passes for a rootfs", top)
			}
			for _, m := range l.below(top) {
				if m.ID == top.ID {
					t.Fatalf("mount %d is below itself", m.ID)
				}
				kind, why := l.choose(m, p)
				if kind == "" || why == "" || !strings.HasPrefix(l.destination(m), "/") {
					t.Fatalf("%q: %q because %q", l.destination(m), kind, why)
				}
			}
		}
	})
}
