package layer

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Mount is the overlay mount of a container's root filesystem, as one line of
// mountinfo describes it.
type Mount struct {
	ID           int    // of the mount in the container
	Major, Minor int    // device of the overlay
	Options      string // super options, the last field of the line
	// Mountpoint is where the host sees the mount, "" if it does not. Hints below
	// it are taken as paths of the container.
	Mountpoint string
}

// A Layer is a lower directory of an overlay. It is compared for equality:
// unpacked anew, the same image layer is another Layer.
type Layer struct {
	// Digest of the image layer's uncompressed archive (its diff id), as
	// "sha256:…"; "" for a directory that no [Resolver] knows.
	Digest string
	// Dir is the directory itself.
	Dir Dir
}

// A Rootfs is the layers of a container's root filesystem. It holds nothing open
// and can be used by several goroutines.
type Rootfs struct {
	host       *Host
	mount      Mount
	lowers     []lower // topmost first
	upperFS    int64   // type of its filesystem
	upper      string  // with a slash at its end; "" if the overlay cannot be written
	metacopy   []byte  // attribute of files without content, with a zero byte; nil if the overlay refuses them
	indexed    bool    // hard links are kept over a copy-up
	unresolved error
}

// A lower is a layer with its directory.
type lower struct {
	Layer
	prefix string // path of the directory below the host's root, with a slash at its end
	local  bool   // on a filesystem that only this kernel changes
}

// ErrLayers says that an overlay's layers cannot be found on the host. Its files
// then belong to the container alone.
var ErrLayers = errors.New("the layers of the root filesystem cannot be found")

// Rootfs finds the layers of a container's root filesystem.
//
// Runtimes give relative lower directories where there are many; mountinfo does
// not say relative to what. bases are directories to try; where the runtimes are
// known to mount from, above the upper directory and above the mount point, is
// tried after them. A wrong guess cannot make a wrong layer: then nothing is equal.
//
// Each resolver names those directories that it knows; the first one that does
// wins. What a resolver fails with is in [Rootfs.Unresolved], and not an error:
// its layers then have no digest. Errors wrap [ErrLayers].
func (h *Host) Rootfs(ctx context.Context, m Mount, bases []string, resolvers ...Resolver) (*Rootfs, error) {
	options, err := parseOverlay(m.Options)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLayers, err)
	}
	found, err := h.locate(options, m, bases)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; unless the runtime's storage is where the agent does not see it, name it as a base", ErrLayers, err)
	}
	r := &Rootfs{host: h, mount: m, indexed: h.hasFeature("index", options.index)}
	// Directories that only hold data are followed without the option (6.16).
	switch metacopy := len(options.dataOnly) > 0 || h.hasFeature("metacopy", options.metacopy); {
	case metacopy && options.userXattr:
		r.metacopy = []byte("user.overlay.metacopy\x00")
	case metacopy:
		r.metacopy = []byte("trusted.overlay.metacopy\x00")
	}
	if found.upper.name != "" {
		r.upper, r.upperFS = prefix(found.upper), found.upper.fs
	}
	names := make([]string, len(found.lower))
	for i, dir := range found.lower {
		names[i] = dir.name
		r.lowers = append(r.lowers, lower{Layer: Layer{Dir: dir.id}, prefix: prefix(dir), local: isLocal(dir.fs)})
	}
	r.name(ctx, names, resolvers)
	return r, nil
}

// Layers returns the layers, topmost first.
func (r *Rootfs) Layers() []Layer {
	layers := make([]Layer, len(r.lowers))
	for i := range r.lowers {
		layers[i] = r.lowers[i].Layer
	}
	return layers
}

// Unresolved returns why layers have no digest although a resolver was asked that
// could have known, or nil.
func (r *Rootfs) Unresolved() error { return r.unresolved }

// name asks the resolvers for digests.
func (r *Rootfs) name(ctx context.Context, directories []string, resolvers []Resolver) {
	for _, resolver := range resolvers {
		digests, err := resolver.Digests(ctx, directories)
		if err == nil && len(digests) != len(directories) {
			err = fmt.Errorf("%d digests for %d directories", len(digests), len(directories))
		}
		if err != nil {
			r.unresolved = errors.Join(r.unresolved, err)
			continue
		}
		for i, digest := range digests {
			if l := &r.lowers[i]; l.Digest == "" && isDigest(digest) {
				l.Digest = digest
			}
		}
	}
}

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

// hasFeature reports whether an overlay was mounted with a feature. mountinfo shows
// the option only if it is not the kernel's default.
func (h *Host) hasFeature(name, option string) bool {
	if option != "" {
		return option == "on"
	}
	f, err := h.openStored("/sys/module/overlay/parameters/"+name, unix.S_IFREG)
	if err != nil {
		return true // the cautious answer
	}
	defer f.Close()
	value, err := f.read(4096)
	return err != nil || strings.TrimSpace(string(value)) != "N"
}

func prefix(d directory) string {
	return strings.TrimSuffix(strings.TrimPrefix(d.name, "/"), "/") + "/"
}
