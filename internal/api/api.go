// Package api is the agent's socket: HTTP/1.1 with JSON on a unix socket that
// only root may use, checked by SO_PEERCRED. It owns paths, encodings, peer
// checks and descriptor passing; it must not own what the calls do, which is
// behind [Backend]. The hook speaks the same protocol with its own few lines
// (package hook), to stay small.
package api

import (
	"context"
	"net"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
)

// DefaultSocket is where the agent listens unless configured otherwise.
const DefaultSocket = "/run/assay/agent.sock"

// The paths of version 1; announcements go to announce.Path.
const (
	PathStatus   = "/v1/status"   // GET -> Status
	PathEvents   = "/v1/events"   // GET ?follow=1&since=SEQ -> audit.Record, one a line
	PathCheck    = "/v1/check"    // POST ?tenant=NAME with one descriptor -> CheckResult
	PathVerdicts = "/v1/verdicts" // GET -> Verdicts
	PathExplain  = "/v1/explain"  // GET ?container=NAME&path=PATH -> Explanation
	PathScan     = "/v1/scan"     // POST ScanRequest -> ScanLine, one a line
	PathAhead    = "/v1/ahead"    // POST {"paused":true} -> AheadStatus
	// PathNRI takes a connection to a container runtime, with the descriptor, on which the
	// agent's NRI plugin is served from then on. The reply comes when that has ended.
	PathNRI = "/v1/nri"
	// DELETE of announce.Path + "/" + NAME -> Released.
)

// A Backend does what the socket asks for.
type Backend interface {
	// Announce guards a container. It returns when every mark is in place, or
	// an error; a *announce.Refusal carries its remedy to the caller.
	Announce(ctx context.Context, c announce.Container) (announce.Guarded, error)
	// Status describes the agent now.
	Status(ctx context.Context) Status
	// Events returns the records kept in memory and whatever comes after.
	Events() *audit.Log
	// Check scans fd with the pools of the named tenant ("" is the default
	// tenant, the last that matches everything). It borrows fd.
	Check(ctx context.Context, fd int, tenant, path string) (CheckResult, error)
	// Verdicts describes the verdict cache and its store. The server completes
	// what it returns, as it does with a Status and an Explanation: hit rates,
	// empty lists, sentences for reasons.
	Verdicts(ctx context.Context) (Verdicts, error)
	// Explain tells what is known of the file at path, an absolute path as the
	// container sees it. The container is what an operator calls it: see
	// [FindContainer]. It must not scan, count a lookup or place a mark.
	Explain(ctx context.Context, container, path string) (Explanation, error)
	// Scan scans a layer or an image. It calls emit, from any number of
	// goroutines, for progress (a few times a second at most), findings and
	// files that were not scanned; emit waits for the client to read, and an
	// error of it means that the client is gone. It returns once nothing calls
	// emit any more. An error before the first emit is a refused request, one
	// after it a scan that ended early.
	Scan(ctx context.Context, req ScanRequest, emit func(ScanLine) error) (ScanTotals, error)
	// Ahead pauses or resumes the scanning ahead of the first open, and returns
	// the state that this led to. To pause what is paused is no error.
	Ahead(ctx context.Context, paused bool) (AheadStatus, error)
	// Release ends the guard of a container, which goes on unguarded. The container
	// is what an operator calls it: see [FindContainer].
	Release(ctx context.Context, container string) (Released, error)
	// ServeNRI serves the NRI plugin on a connection to a container runtime, which is
	// the backend's from now on, until that ends or ctx does.
	ServeNRI(ctx context.Context, conn net.Conn) error
}

// A CheckResult is the verdict on a descriptor that a client passed in.
type CheckResult struct {
	Path     string          `json:"path"` // as the client named it
	Tenant   string          `json:"tenant"`
	Decision string          `json:"decision"` // what the tenant's policy would answer: allow, deny
	Verdict  string          `json:"verdict"`
	Reason   audit.Reason    `json:"reason"`
	Detail   string          `json:"detail,omitempty"`
	Size     int64           `json:"size"`
	Scanners []audit.Scanner `json:"scanners"`
	Micros   int64           `json:"micros"`
}

// A Status is the agent's own account of itself.
type Status struct {
	Version    string            `json:"version"`
	PID        int               `json:"pid"`
	Started    time.Time         `json:"started"`
	ConfigFile string            `json:"configFile"`
	ConfigHash string            `json:"configHash"`            // of the configuration in force
	ReloadErr  string            `json:"reloadError,omitempty"` // why the last reload changed nothing
	Healthy    bool              `json:"healthy"`
	Problems   []string          `json:"problems"` // what makes it unhealthy, each with a remedy
	Readers    int               `json:"readers"`  // event reader threads
	Goroutines int               `json:"goroutines"`
	Tenants    []TenantStatus    `json:"tenants"`
	Containers []ContainerStatus `json:"containers"`
	Scanners   []ScannerStatus   `json:"scanners"`
	Records    RecordsStatus     `json:"records"`
	Cache      CacheStatus       `json:"cache"`
	Store      StoreStatus       `json:"store"`
	Marks      MarksStatus       `json:"marks"`
	Events     EventsStatus      `json:"events"`
	// Descriptors is how the agent's descriptors are shared out.
	Descriptors DescriptorsStatus `json:"descriptors"`
	Ahead       AheadStatus       `json:"ahead"`
	Keeper      KeeperStatus      `json:"keeper"`
	NRI         NRIStatus         `json:"nri"`
	TakeOver    *TakeOverStatus   `json:"takeOver,omitempty"` // the last one, if there was one
}

// A TenantStatus is one tenant's numbers since the agent started.
type TenantStatus struct {
	Name       string `json:"name"`
	Mode       string `json:"mode"`
	Containers int    `json:"containers"`
	Queued     int    `json:"queued"`   // events waiting for a worker
	InFlight   int    `json:"inFlight"` // events being scanned
	// Pending are openers that wait for an answer, those whose event nobody has read yet
	// included, and OldestMicros for how long the first of those that were read waits.
	Pending      int               `json:"pending"`
	OldestMicros int64             `json:"oldestMicros"`
	Held         int               `json:"held"`      // events whose descriptor is kept
	Stuck        int               `json:"stuck"`     // scans that did not come back, whose workers were replaced
	Scans        uint64            `json:"scans"`     // files that scanners were asked about
	Marks        int               `json:"marks"`     // ignore marks on clean files now
	Allowed      uint64            `json:"allowed"`   // answers
	Denied       uint64            `json:"denied"`    // answers
	Unscanned    uint64            `json:"unscanned"` // allows of something no scanner called clean
	Reasons      map[string]uint64 `json:"reasons"`   // answers by reason, non-zero only
}

// A ContainerStatus is one guarded container.
type ContainerStatus struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Tenant    string    `json:"tenant"`
	PID       int       `json:"pid"`
	Since     time.Time `json:"since"`
	Marks     []Mark    `json:"marks"`
	Allowed   uint64    `json:"allowed"`
	Denied    uint64    `json:"denied"`
	Kept      bool      `json:"kept"` // the keeper holds it: it stays guarded while the agent is away
}

// A Mark is one mark of a container, or a mount that was left unmarked.
type Mark struct {
	Destination string `json:"destination"` // inside the container
	FSType      string `json:"fsType"`
	Kind        string `json:"kind"` // superblock, mount, none
	Why         string `json:"why"`  // the rule that chose the kind
}

// A ScannerStatus is one scanner.
type ScannerStatus struct {
	Name       string `json:"name"`
	Driver     string `json:"driver"`
	Healthy    bool   `json:"healthy"`
	Error      string `json:"error,omitempty"`
	Generation string `json:"generation,omitempty"`
}

// RecordsStatus tells of the records. An audit.Status converts to it.
type RecordsStatus struct {
	Written     uint64 `json:"written"`         // to the file
	Pending     uint64 `json:"pending"`         // in memory, not yet in the file
	Lost        uint64 `json:"lost"`            // never reached the file: overwritten before, or not writable
	Error       string `json:"error,omitempty"` // why the file cannot be written now
	File        string `json:"file,omitempty"`
	Subscribers int    `json:"subscribers"`
	LostToSubs  uint64 `json:"lostToSubscribers"`
	LostAtCrash uint64 `json:"lostAtCrash"` // had not reached the file when earlier agents ended
}
