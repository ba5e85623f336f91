package nri

import (
	"sync/atomic"
	"time"

	"github.com/assay-project/assay/internal/announce"
)

// A Mode says who made a connection.
type Mode string

// The modes.
const (
	External     Mode = "external"      // we did, to the runtime's socket
	PreInstalled Mode = "pre-installed" // the runtime did, by starting a program
)

// A Status is what the plugin says of itself.
type Status struct {
	Connected      bool      `json:"connected"`
	Since          time.Time `json:"since,omitzero"` // when Connected last changed
	Mode           Mode      `json:"mode,omitempty"` // of the last connection, like the next four
	Runtime        string    `json:"runtime,omitempty"`
	RuntimeVersion string    `json:"runtimeVersion,omitempty"`
	NRIVersion     string    `json:"nriVersion,omitempty"` // the runtime's
	Connections    uint64    `json:"connections"`          // so far
	LastError      string    `json:"lastError,omitempty"`  // why there is none, or why the one before ended
	// Synchronized is about the containers that ran when we connected.
	Synchronized Progress `json:"synchronized"`
	Known        int      `json:"known"`         // containers that Plugin.Known knows
	Hooked       uint64   `json:"hooksInjected"` // into this many containers
	Refused      uint64   `json:"refused"`       // containers that were kept from running
	Open         uint64   `json:"startedOpen"`   // containers that started although they could not be announced
	Exempt       uint64   `json:"exempt"`        // containers that started and are exempt
	Panics       uint64   `json:"panics"`        // that were caught: defects of the agent
}

// Progress is how far the announcement of containers has come.
type Progress struct {
	Containers int    `json:"containers"` // all of them
	Guarded    int    `json:"guarded"`    // announced, or exempt
	UnderWay   int    `json:"underWay"`   // still to be announced, perhaps for the second time
	Gone       int    `json:"gone"`       // ended meanwhile
	Failed     int    `json:"failed"`     // given up
	LastError  string `json:"lastError,omitempty"`
}

// connectionState is what Status says of the connection. Plugin.mu guards it.
type connectionState struct {
	connected   bool
	since       time.Time
	mode        Mode
	runtime     string
	version     string
	nri         string
	connections uint64
	lastError   string
}

type counters struct {
	injected, refused, open, exempt, panics atomic.Uint64
}

// Status returns the plugin's present state.
func (p *Plugin) Status() Status {
	p.mu.Lock()
	c := p.state
	p.mu.Unlock()
	return Status{
		Connected: c.connected, Since: c.since, Mode: c.mode,
		Runtime: c.runtime, RuntimeVersion: c.version, NRIVersion: c.nri,
		Connections: c.connections, LastError: c.lastError,
		Synchronized: p.late.progress(),
		Known:        p.expected.len(),
		Hooked:       p.counters.injected.Load(),
		Refused:      p.counters.refused.Load(),
		Open:         p.counters.open.Load(),
		Exempt:       p.counters.exempt.Load(),
		Panics:       p.counters.panics.Load(),
	}
}

// configured notes who the runtime is.
func (p *Plugin) configured(runtime, version, nri string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.runtime, p.state.version, p.state.nri = runtime, version, nri
}

// connected notes that a connection is in use.
func (p *Plugin) connected(mode Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.connected, p.state.since, p.state.mode = true, time.Now(), mode
	p.state.connections++
}

// runtime is who the runtime is, if the agent knows how to ask it.
func (p *Plugin) runtime() announce.Runtime {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r := announce.Runtime(p.state.runtime); r {
	case announce.Containerd, announce.CRIO:
		return r
	}
	return ""
}
