package api

import "time"

// The values of [KeeperStatus.Backend], as in the configuration.
const (
	KeeperProcess = "process"
	KeeperSystemd = "systemd"
	KeeperOff     = "off"
)

// KeeperStatus is what holds the containers while the agent is away.
type KeeperStatus struct {
	Backend string    `json:"backend"`           // process, systemd, off
	Socket  string    `json:"socket,omitempty"`  // of process
	PID     int       `json:"pid,omitempty"`     // 0 while there is none
	Version string    `json:"version,omitempty"` // of process
	Since   time.Time `json:"since,omitzero"`    // since when the agent has this one
	Lost    uint64    `json:"lost"`              // keepers lost since the agent started
	// Trouble says why there is none, or why it does not say how it is; "" if all is well.
	Trouble string      `json:"trouble,omitempty"`
	Entries []KeptEntry `json:"entries"` // of process
}

// A KeptEntry is what the keeper holds for one container, or for the fanotify group
// that several of a tenant share.
type KeptEntry struct {
	Key       string `json:"key"` // opaque; begins with the container's id
	Grace     int64  `json:"graceMicros"`
	Fallback  string `json:"fallback"`  // allow, deny: the answer after the grace time
	Leases    int    `json:"leases"`    // copies of leases under kernel marks
	Pending   int    `json:"pending"`   // events that nobody has read
	Answering bool   `json:"answering"` // by the fallback: the agent is away for too long
	Answered  uint64 `json:"answered"`  // by the fallback, since the last agent
}

// TakeOverStatus is what came of taking containers over from the agent before.
type TakeOverStatus struct {
	At         time.Time `json:"at"`
	Took       int64     `json:"tookMicros"`     // until events were read again
	Since      time.Time `json:"since,omitzero"` // when the last agent was lost; missing if nobody knows
	Why        string    `json:"why,omitempty"`  // how it was lost
	Containers int       `json:"containers"`     // taken over
	Gone       int       `json:"gone"`           // ended meanwhile
	Settled    uint64    `json:"settled"`        // opens that the last agent had in hand
	Answered   uint64    `json:"answered"`       // opens that the keeper answered
	Unguarded  []string  `json:"unguarded"`      // ids: ran without a gate until the take-over
	Failed     []string  `json:"failed"`         // ids: could not be taken over
}

func fillKeeper(st *Status) {
	if st.Keeper.Backend == "" {
		st.Keeper.Backend = KeeperOff
	}
	notNil(&st.Keeper.Entries)
	if st.TakeOver != nil {
		notNil(&st.TakeOver.Unguarded)
		notNil(&st.TakeOver.Failed)
	}
}
