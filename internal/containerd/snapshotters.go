package containerd

// A Fit says what can be done for containers of a snapshotter.
type Fit int

// The fits.
const (
	Unproven Fit = iota // nobody has tried it
	Full                // guarded, and verdicts are shared by what the image's layers are
	Coarse              // guarded, but verdicts are the container's alone
	Refused             // cannot be guarded
)

// FitOf returns what can be done for the containers of a snapshotter, by its name,
// and why it is not [Full].
func FitOf(snapshotter string) (fit Fit, why string) {
	switch snapshotter {
	case "overlayfs":
		return Full, ""
	case "erofs":
		return Coarse, "its layers are filesystems of their own, which keep no birth times"
	case "stargz", "soci", "nydus", "overlaybd":
		return Coarse, "its layers are fetched while they are read, so that nothing of them can be proven beforehand"
	case "native", "btrfs", "zfs", "blockfile", "devmapper":
		return Refused, "its containers' root filesystems are no overlays"
	case "fuse-overlayfs":
		return Refused, "its containers' root filesystems are a program's, not the kernel's overlay"
	default:
		return Unproven, "this version of Assay does not know it"
	}
}
