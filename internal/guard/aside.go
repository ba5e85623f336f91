package guard

import (
	"errors"
	"slices"
	"strings"

	"github.com/assay-project/assay/internal/fanotify"
)

// slowFilesystems are served by somebody whom the kernel asks when a file is
// opened, the event's descriptor included, and who may never answer.
var slowFilesystems = []string{ //nolint:gochecknoglobals // a table
	"9p", "afs", "ceph", "cifs", "coda", "fuse", "gfs2", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "virtiofs",
}

func isSlow(fstype string) bool {
	return slices.Contains(slowFilesystems, fstype) || strings.HasPrefix(fstype, "fuse.") || fstype == "fuseblk"
}

// An aside is a group with a reader of its own for a container's mounts on slow
// filesystems, so that a server that hangs holds up nothing but these mounts.
type aside struct {
	readers *fanotify.Readers
	group   *fanotify.Group
}

// groupFor returns the group that is to watch a mount of the container. Where the
// kernel allows no more groups, a slow mount shares the container's and its risk.
func (c *container) groupFor(fstype string) (*fanotify.Group, error) {
	if !isSlow(fstype) {
		return c.group, nil
	}
	if c.aside == nil {
		a, err := newAside(c)
		if errors.Is(err, fanotify.ErrGroupLimit) {
			c.guard.log.Warn("the limit of fanotify groups is reached: a mount that may hang is watched by the common readers",
				"container", c.info.ID, "filesystem", fstype, "remedy", "raise fs.fanotify.max_user_groups")
			return c.group, nil
		}
		if err != nil {
			return nil, err
		}
		c.aside = a
	}
	return c.aside.group, nil
}

func newAside(c *container) (*aside, error) {
	group, err := c.guard.newGroup()
	if err != nil {
		return nil, err
	}
	return serveAside(c, group)
}

// serveAside reads a group with a reader of its own. It closes the group if it cannot.
func serveAside(c *container, group *fanotify.Group) (*aside, error) {
	readers, err := c.guard.readers.StartAside()
	if err != nil {
		group.Close()
		return nil, err
	}
	a := &aside{readers: readers, group: group}
	if err := readers.Add(group, c, c.unopened); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// close gives up the group. The reader may hang in the kernel for as long as the
// filesystem does, which nobody waits for.
func (a *aside) close() {
	a.group.Close()
	go func() {
		<-a.group.Closed()
		a.readers.Stop()
	}()
}
