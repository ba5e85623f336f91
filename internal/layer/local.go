package layer

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// local are the filesystems, by type (f_type of statfs(2)), that only this kernel
// changes, as far as runtimes keep layers on them. On others an identity proves
// nothing.
var local = []int64{ //nolint:gochecknoglobals // a table
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
	unix.TMPFS_MAGIC, unix.EROFS_SUPER_MAGIC_V1, unix.SQUASHFS_MAGIC,
	0x2fc12fc1, // zfs
	0xca451a4e, // bcachefs
}

// IsLocal reports whether the layer at a depth is on a filesystem that only this
// kernel changes.
func (r *Rootfs) IsLocal(depth int) bool { return slices.Contains(local, r.lowers[depth].fsType) }

// IsLocal reports whether the layer is on a filesystem that only this kernel changes.
func (t *Tree) IsLocal() bool { return slices.Contains(local, t.fsType) }

// Locate returns the layer in a directory of the host, without its digest.
func (h *Host) Locate(name string) (Directory, error) { return h.layerAt(name, "") }

// defaultStorage is where podman and CRI-O keep images unless told otherwise
// (containers-storage.conf(5), graphroot).
const defaultStorage = "/var/lib/containers/storage"

// Roots lists the storages that may have something: the usual one, and those that
// were asked about.
func (c *ContainersStorage) Roots() []string {
	roots := []string{defaultStorage}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.read {
		if root, ok := strings.CutSuffix(name, "/overlay-layers/layers.json"); ok && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	return roots
}
