package keeper

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
)

// An Entry is what is kept for one container, or for one group that several share.
type Entry struct {
	Key string // names the entry, for ever
	// Grace is how long openers wait for the next agent, and Fallback what they are
	// answered afterwards.
	Grace    time.Duration
	Fallback fanotify.Decision
	State    json.RawMessage // the agent's, at most 48 KiB
	Files    []File
	// Answered counts what the keeper has answered by Fallback since the last agent.
	Answered uint64
}

// A File is a descriptor of an entry.
type File struct {
	Kind Kind
	FD   int
}

// A Kind says what a descriptor is of.
type Kind string

// The kinds. An entry has at most one of each.
const (
	Group   Kind = "group"   // a fanotify group
	Aside   Kind = "aside"   // a fanotify group for files that the kernel may take for ever to open
	Process Kind = "process" // a pidfd: the entry is over when the process has exited
)

// Take returns the descriptor of a kind, and takes it out of the entry; -1 if there
// is none.
func (e *Entry) Take(kind Kind) int {
	for i, f := range e.Files {
		if f.Kind == kind {
			e.Files = append(e.Files[:i:i], e.Files[i+1:]...)
			return f.FD
		}
	}
	return -1
}

// Close closes the descriptors that nobody took.
func (e *Entry) Close() {
	for _, f := range e.Files {
		_ = unix.Close(f.FD)
	}
	e.Files = nil
}

// An Absence is the time without an agent before a take-over.
type Absence struct {
	// Since is when the last agent was lost; zero if there was none.
	Since time.Time
	// Why says how it was lost.
	Why string
	// Limit bounds the descriptor numbers of the last agent.
	Limit int
	// ClockMoved is by how much the wall clock was set meanwhile.
	ClockMoved time.Duration
}

// A Status is what the keeper says of itself.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Agent   int       `json:"agent,omitempty"` // pid; 0 if there is none
	// Since and Why are of the agent's absence, the present one or the last.
	Since   time.Time `json:"since"`
	Why     string    `json:"why,omitempty"`
	Entries []Held    `json:"-"` // messages of their own
}

// A Held is what the keeper says of one entry.
type Held struct {
	Key       string
	Grace     time.Duration
	Fallback  fanotify.Decision
	Leases    int
	Pending   int    // events that nobody has read
	Answering bool   // by the fallback
	Answered  uint64 // by the fallback, since the last agent
}

// fallbackNamed returns a fallback by its name on the wire.
func fallbackNamed(name string) (fanotify.Decision, error) {
	switch name {
	case "allow":
		return fanotify.Allow, nil
	case "deny":
		return fanotify.Deny, nil
	}
	return 0, fmt.Errorf("fallback %q is neither allow nor deny", name)
}
