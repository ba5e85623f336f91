package fanotify

import (
	"errors"
	"fmt"
)

// ErrNotSupported says that this kernel, or this process's privileges, do not
// allow a feature. Any other error of a probe is inconclusive.
var ErrNotSupported = errors.New("not supported")

// A Feature is something that Assay asks of the kernel.
type Feature struct {
	// Name is short and stable, for example "superblock marks on overlay".
	Name string
	// Since is the mainline kernel that brought it; distributions backport, so
	// only Probe decides.
	Since string
	// Required features are needed to guard at all; without the others
	// something is slower or coarser, as Without says.
	Required bool
	// Without says what is lost, and Remedy what to do about it.
	Without, Remedy string
	// Probe does the thing on scratch objects: nil if it works, an error that
	// wraps ErrNotSupported if the kernel refused it, any other error if the
	// probe could not tell. It needs root and leaves nothing behind.
	Probe func() error
}

// notSupported wraps the kernel's refusal of what.
func notSupported(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, ErrNotSupported, err)
}
