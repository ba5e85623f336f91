package layer

// A Reason says whether a file is as a layer has it, and if not, why not.
type Reason uint8

// The reasons.
const (
	Failed       Reason = iota // the proof could not be tried; see the error
	Pristine                   // proven: the file is as the layer has it
	Changed                    // the identity is not, or no longer, that of the descriptor
	NotRegular                 // not a regular file
	OtherMount                 // not proven to be on the root filesystem: another mount, or one that the container made of it
	NoHandle                   // the kernel cannot tell the file behind the overlay's
	NoBirthTime                // the filesystem keeps no birth times
	NoPath                     // the hint is no path that could be looked up
	Born                       // made in the container, or changed in it and no longer in the kernel's cache
	Overlaid                   // the container's upper directory has something at the path
	NotInLayers                // no layer has the path
	Hidden                     // a whiteout, link or file is in the way
	OtherFile                  // another file is at the path
	CopiedUp                   // it was the layer's file and has been changed
	MetadataOnly               // the layer has only the metadata; the content is another layer's
	HardLinked                 // the layer's file has several names, and the overlay keeps them one
	InUpper                    // the file's inode in the upper directory was reached; see OpenUpper
	NotInUpper                 // the upper directory does not have the file, or not where the hint says
	reasonCount
)

// String returns the reason as one word for records and counters.
func (r Reason) String() string {
	switch r {
	case Failed:
		return "failed"
	case Pristine:
		return "pristine"
	case Changed:
		return "changed"
	case NotRegular:
		return "not-regular"
	case OtherMount:
		return "other-mount"
	case NoHandle:
		return "no-handle"
	case NoBirthTime:
		return "no-birth-time"
	case NoPath:
		return "no-path"
	case Born:
		return "born-in-container"
	case Overlaid:
		return "overlaid"
	case NotInLayers:
		return "not-in-layers"
	case Hidden:
		return "hidden"
	case OtherFile:
		return "other-file"
	case CopiedUp:
		return "copied-up"
	case MetadataOnly:
		return "metadata-only"
	case HardLinked:
		return "hard-linked"
	case InUpper:
		return "in-upper"
	case NotInUpper:
		return "not-in-upper"
	case reasonCount:
	}
	return "invalid"
}

// Reasons returns all reasons, for counters.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i) //nolint:gosec // a handful
	}
	return all
}
