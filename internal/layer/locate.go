package layer

import (
	"errors"
	"fmt"
	"path"
	"slices"
)

// located are the directories of an overlay.
type located struct {
	lower []directory
	upper directory
}

// locate finds the directories of an overlay.
func (h *Host) locate(o overlayOptions, m Mount, bases []string) (located, error) {
	if allAbsolute(o) {
		return h.locateAt("", o)
	}
	var problems []error
	for _, base := range slices.Concat(bases, guessBases(o.upper, m.Mountpoint)) {
		found, err := h.locateAt(base, o)
		if err == nil {
			return found, nil
		}
		problems = append(problems, err)
	}
	if len(problems) == 0 {
		return located{}, errors.New("they are relative, and it is not known to what")
	}
	return located{}, errors.Join(problems...)
}

func (h *Host) locateAt(base string, o overlayOptions) (located, error) {
	var found located
	for _, name := range o.lower {
		dir, err := h.directory(under(base, name))
		if err != nil {
			return located{}, fmt.Errorf("lower directory: %w", err)
		}
		found.lower = append(found.lower, dir)
	}
	if o.upper == "" {
		return found, nil
	}
	var err error
	if found.upper, err = h.directory(under(base, o.upper)); err != nil {
		return located{}, fmt.Errorf("upper directory: %w", err)
	}
	return found, nil
}

// under returns name seen from base. It does not clean what it joins: a ".." after
// a symbolic link is not the parent of the link.
func under(base, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return base + "/" + name
}

func allAbsolute(o overlayOptions) bool {
	for _, name := range o.lower {
		if !path.IsAbs(name) {
			return false
		}
	}
	return o.upper == "" || path.IsAbs(o.upper)
}

// guessBases returns where relative lower directories may start from: podman and
// docker mount from the directory that has one directory per layer, which is two
// above a container's upper directory and its mount point; containerd from the
// directory that all snapshots have in common, which is two above the upper one.
func guessBases(upper, mountpoint string) []string {
	var bases []string
	for _, name := range []string{upper, mountpoint} {
		for range 3 {
			if name = path.Dir(name); !path.IsAbs(name) || name == "/" {
				break
			}
			bases = append(bases, name)
		}
	}
	return bases
}
