package fanotify

import (
	"fmt"
	"syscall"
)

// An Error is a fanotify call that the kernel refused.
type Error struct {
	Op     string        // what was tried, for example "mark superblock"
	Object string        // on what; "" if on nothing in particular
	Errno  syscall.Errno // the kernel's answer
}

// Error returns operation, object and the kernel's words.
func (e *Error) Error() string {
	if e.Object == "" {
		return fmt.Sprintf("fanotify: %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("fanotify: %s %s: %v", e.Op, e.Object, e.Errno)
}

// Unwrap returns the errno, for errors.Is(err, unix.EMFILE) and the like.
func (e *Error) Unwrap() error { return e.Errno }
