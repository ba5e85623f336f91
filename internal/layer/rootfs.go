package layer

import (
	"context"
	"errors"
	"fmt"
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
	upper      string  // with a slash at its end; "" if the overlay cannot be written
	upperType  int64   // of the upper directory's filesystem
	origin     string  // attribute that a copy-up leaves
	metacopy   []byte  // attribute of files without content, with a zero byte; nil if the overlay refuses them
	indexed    bool    // hard links are kept over a copy-up
	unresolved error
}

// A lower is a layer with its directory.
type lower struct {
	Layer
	prefix string // path of the directory below the host's root, with a slash at its end
	fsType int64  // of its filesystem
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
	r := &Rootfs{host: h, mount: m, indexed: h.hasFeature("index", options.index), origin: "trusted.overlay.origin"}
	if options.userXattr {
		r.origin = "user.overlay.origin"
	}
	// Directories that only hold data are followed without the option (6.16).
	switch metacopy := len(options.dataOnly) > 0 || h.hasFeature("metacopy", options.metacopy); {
	case metacopy && options.userXattr:
		r.metacopy = []byte("user.overlay.metacopy\x00")
	case metacopy:
		r.metacopy = []byte("trusted.overlay.metacopy\x00")
	}
	if found.upper.name != "" {
		r.upper = prefix(found.upper)
		if r.upperType, err = h.fsType(found.upper.name); err != nil {
			return nil, fmt.Errorf("%w: upper directory: %w", ErrLayers, err)
		}
	}
	names := make([]string, len(found.lower))
	for i, dir := range found.lower {
		names[i] = dir.name
		kind, err := h.fsType(dir.name)
		if err != nil {
			return nil, fmt.Errorf("%w: lower directory: %w", ErrLayers, err)
		}
		r.lowers = append(r.lowers, lower{Layer: Layer{Dir: dir.id}, prefix: prefix(dir), fsType: kind})
	}
	var digests []string
	digests, r.unresolved = resolve(ctx, names, resolvers)
	for i, digest := range digests {
		r.lowers[i].Digest = digest
	}
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

// A Directory is a layer with the place where it is.
type Directory struct {
	Layer
	// Path of the directory in the host's tree, absolute and without symbolic links
	// when it was looked up. Only [Layer.Dir] says whether it still is the same one.
	Path string
}

// Dirs returns the layers with their directories, topmost first.
func (r *Rootfs) Dirs() []Directory {
	dirs := make([]Directory, len(r.lowers))
	for i := range r.lowers {
		dirs[i] = Directory{Layer: r.lowers[i].Layer, Path: "/" + strings.TrimSuffix(r.lowers[i].prefix, "/")}
	}
	return dirs
}

// Unresolved returns why layers have no digest although a resolver was asked that
// could have known, or nil.
func (r *Rootfs) Unresolved() error { return r.unresolved }

// resolve asks the resolvers for the digests of directories, "" for those that none
// knows. An error says which resolvers failed; the digests of the others are good.
func resolve(ctx context.Context, directories []string, resolvers []Resolver) ([]string, error) {
	var failed error
	known := make([]string, len(directories))
	for _, resolver := range resolvers {
		digests, err := resolver.Digests(ctx, directories)
		if err == nil && len(digests) != len(directories) {
			err = fmt.Errorf("%d digests for %d directories", len(digests), len(directories))
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		for i, digest := range digests {
			if known[i] == "" && isDigest(digest) {
				known[i] = digest
			}
		}
	}
	return known, failed
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
