package guard

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/tenant"
)

// A MarkKind says how a mount of a container is watched.
type MarkKind string

// The kinds of marks.
const (
	MarkSuperblock MarkKind = "superblock" // every open of the filesystem, through any mount
	MarkMount      MarkKind = "mount"      // opens through this mount
	MarkNone       MarkKind = "none"       // not watched
)

// A Mount is one mount of a container with the mark it got.
type Mount struct {
	Destination string // inside the container
	FSType      string
	Kind        MarkKind
	Why         string // the rule that chose the kind
	id          int    // of the mount
}

// pseudoFilesystems hold no files with content of their own that a process could
// be made to read or execute: their files are made by the kernel on the spot.
var pseudoFilesystems = []string{ //nolint:gochecknoglobals // a table
	"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
	"efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "securityfs",
	"selinuxfs", "smackfs", "sysfs", "tracefs",
}

// rootfsError says why a root filesystem cannot be guarded, and what to do.
type rootfsError struct{ message, remedy string }

func (e *rootfsError) Error() string { return e.message }

// A layout is what the mount tables say about a container.
type layout struct {
	id     string // the container's
	rootfs string // its mount point in the process's namespace: "/" after the pivot
	onHost string // its mount point on the host, where it was announced; "" or "/" if unknown
	mounts []*mountinfo.Info
	host   []*mountinfo.Info // mounts of the host's namespace
}

// readMounts parses a mountinfo file.
func readMounts(file string) ([]*mountinfo.Info, error) {
	f, err := os.Open(file) //nolint:forbidigo // procfs
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

func parseMounts(r io.Reader) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	return mounts, nil
}

// find returns the mount with an id, or nil.
func (l *layout) find(id int) *mountinfo.Info {
	i := slices.IndexFunc(l.mounts, func(m *mountinfo.Info) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return l.mounts[i]
}

// below lists the mounts whose chain of parents leads to top, top excluded.
func (l *layout) below(top *mountinfo.Info) []*mountinfo.Info {
	inside := map[int]bool{top.ID: true}
	var found []*mountinfo.Info
	// A child can stand before its parent in the table after a move: repeat
	// until nothing is added.
	for grew := true; grew; {
		grew = false
		for _, m := range l.mounts {
			if inside[m.Parent] && !inside[m.ID] {
				inside[m.ID] = true
				found = append(found, m)
				grew = true
			}
		}
	}
	return found
}

// destination is the mount point as the container sees it.
func (l *layout) destination(m *mountinfo.Info) string {
	return path.Join("/", strings.TrimPrefix(m.Mountpoint, l.rootfs))
}

// checkRootfs reports why the mount at the rootfs cannot be guarded as one.
func (l *layout) checkRootfs(m *mountinfo.Info) error {
	if m.FSType != "overlay" {
		return &rootfsError{
			fmt.Sprintf("the root filesystem of container %s is %s at %s, not an overlay", l.id, m.FSType, m.Mountpoint),
			"use the overlay storage driver or snapshotter (fuse-overlayfs and vfs cannot be guarded), or exempt the container's namespace",
		}
	}
	if m.Root != "/" {
		return &rootfsError{
			fmt.Sprintf("the root filesystem of container %s is a part (%s) of an overlay, not an overlay of its own", l.id, m.Root),
			"give each container its own overlay mount, or exempt the container's namespace",
		}
	}
	if where := l.sharedWithHost(m); where != "" {
		return &rootfsError{
			fmt.Sprintf("the overlay of container %s is also mounted on the host at %s", l.id, where),
			"give each container its own overlay mount, or exempt the container's namespace",
		}
	}
	return nil
}

// sharedWithHost returns where on the host the superblock of m is mounted for
// somebody else, or "". The host's mounts at or below the container's own rootfs
// or in a directory named after the container were made by its runtime for it
// alone; only root can make them.
func (l *layout) sharedWithHost(m *mountinfo.Info) string {
	for _, h := range l.host {
		if !sameDevice(h, m) {
			continue
		}
		if len(l.onHost) > 1 && within(h.Mountpoint, l.onHost) {
			continue
		}
		if isGenerated(l.id) && slices.Contains(strings.Split(h.Mountpoint, "/"), l.id) {
			continue
		}
		return h.Mountpoint
	}
	return ""
}

// holdsLayers reports whether the filesystem of m is where an overlay of the host
// keeps its layers: a superblock mark there would see the kernel's own opens of
// every container's files.
func (l *layout) holdsLayers(m *mountinfo.Info) bool {
	return slices.ContainsFunc(l.host, func(h *mountinfo.Info) bool {
		if h.FSType != "overlay" {
			return false
		}
		for option := range strings.SplitSeq(h.VFSOptions, ",") {
			name, dirs, _ := strings.Cut(option, "=")
			if name != "upperdir" && name != "lowerdir" {
				continue
			}
			for dir := range strings.SplitSeq(dirs, ":") {
				if on := l.hostMountOf(dir); on != nil && sameDevice(on, m) {
					return true
				}
			}
		}
		return false
	})
}

// hostMountOf returns the mount of the host that the path p is on, or nil if p is
// not absolute.
func (l *layout) hostMountOf(p string) *mountinfo.Info {
	var found *mountinfo.Info
	for _, h := range l.host {
		if path.IsAbs(p) && within(p, h.Mountpoint) && (found == nil || len(h.Mountpoint) >= len(found.Mountpoint)) {
			found = h
		}
	}
	return found
}

func sameDevice(a, b *mountinfo.Info) bool { return a.Major == b.Major && a.Minor == b.Minor }

// isGenerated reports whether a container id has the form that podman, docker
// and the CRI runtimes generate: 64 hexadecimal digits. Other ids are somebody's
// choice and could be the name of any directory, such as "tmp".
func isGenerated(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// choose says which mark the mount m, not the rootfs, gets, and why.
func (l *layout) choose(m *mountinfo.Info, t *tenant.Tenant) (MarkKind, string) {
	if slices.Contains(t.ExcludeMounts, l.destination(m)) {
		return MarkNone, "excluded by the tenant's policy"
	}
	if slices.Contains(pseudoFilesystems, m.FSType) {
		return MarkNone, "kernel filesystem without files of its own"
	}
	where := l.sharedWithHost(m)
	if where == "" {
		return MarkSuperblock, "the filesystem is this container's alone"
	}
	if t.VolumeMarks != tenant.VolumeSuperblock {
		return MarkMount, "the filesystem is shared with the host at " + where
	}
	if i := slices.IndexFunc(l.host, func(h *mountinfo.Info) bool {
		return sameDevice(h, m) && slices.Contains(hostMountpoints, h.Mountpoint)
	}); i >= 0 {
		return MarkMount, "volumeMarks: superblock does not apply to the host's own " + l.host[i].Mountpoint
	}
	if l.holdsLayers(m) {
		return MarkMount, "volumeMarks: superblock does not apply to a filesystem that containers' layers are on"
	}
	return MarkSuperblock, "volumeMarks: superblock"
}

// hostMountpoints are filesystems that the host itself lives on: a superblock
// mark there would put every process of the node behind one tenant's scanners,
// the agent included.
var hostMountpoints = []string{"/", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/root", "/run", "/tmp", "/usr", "/var", "/var/lib", "/var/log"} //nolint:gochecknoglobals // a table

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// errHidden says that a mount cannot be reached because another covers it.
var errHidden = errors.New("covered by another mount")

// openMount opens the mount m below rootfd as O_PATH, or returns errHidden.
func (l *layout) openMount(rootfd int, m *mountinfo.Info) (int, error) {
	// Mount points in mountinfo are free of symlinks, so one in the way means
	// that the path no longer leads to this mount.
	fd, err := openBeneath(rootfd, l.destination(m), 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, errHidden
	}
	if err != nil {
		return -1, err
	}
	id, err := mountID(fd)
	if err == nil && id != m.ID {
		err = errHidden
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
