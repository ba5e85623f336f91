package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What can be wrong with a store, for errors.Is. In all cases the cache works on
// without what the store cannot do.
var (
	// ErrLocked: another process has the store.
	ErrLocked = errors.New("another process uses the verdict store: is an agent running already?")
	// ErrNewerVersion: the file is from a newer version. It is left as it is.
	ErrNewerVersion = errors.New("the verdict store was written by a newer version: go back to that version, or remove the file")
	// ErrCorrupt: the file is damaged. What still verifies is used, and the file
	// is written anew.
	ErrCorrupt = errors.New("the verdict store is damaged")
	// ErrReadOnly: the file can be read and not written.
	ErrReadOnly = errors.New("the verdict store is on a read-only filesystem: new verdicts do not survive a restart")
	// ErrFull: no space is left for the file.
	ErrFull = errors.New("no space is left for the verdict store: free some; until then new verdicts do not survive a restart")
	// ErrUntrusted: others than the agent's user could have written the file.
	ErrUntrusted = errors.New("others could have written the verdict store: make it and its directory the agent's own, mode 0700")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the verdict store is closed")
)

// classify wraps an error of the filesystem in the sentinel that says what it
// means here.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w (%w)", ErrReadOnly, err)
	}
	return err
}

// A Loss says why a record did not reach the file. The set is closed: each
// reason has a counter.
type Loss uint8

// The reasons of a loss.
const (
	LossQueue    Loss = iota // the writer was behind
	LossWrite                // the file could not be written
	LossTooLong              // a name is longer than the format allows
	LossReadOnly             // the file is read-only
	LossClosed               // the store was closed
	LossBound                // no room within the bound
	NumLosses                // number of reasons; not a reason
)

// String returns the reason as it stands in metrics.
func (l Loss) String() string {
	names := [NumLosses]string{"queue", "write", "too-long", "read-only", "closed", "bound"}
	if l < NumLosses {
		return names[l]
	}
	return "invalid"
}
