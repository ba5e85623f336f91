package api

import "time"

// What the agent does ahead of the first open.
const (
	AheadOff      = "off"      // nothing is scanned ahead
	AheadIdle     = "idle"     // nothing is left to scan
	AheadScanning = "scanning" // at work
	AheadPaused   = "paused"   // an operator said so
	AheadWaiting  = "waiting"  // there is work, but openers or the machine come first
)

// AheadStatus is the scanning of layers ahead of the first open of their files.
type AheadStatus struct {
	State        string    `json:"state"`             // off, idle, scanning, paused, waiting
	Since        time.Time `json:"since,omitzero"`    // of the state
	LayersQueued int       `json:"layersQueued"`      // the one being scanned included
	LayersDone   int       `json:"layersDone"`        // since the agent started
	FilesDone    int64     `json:"filesDone"`         // of the layers done and queued
	FilesTotal   int64     `json:"filesTotal"`        // of the layers done and queued, as far as counted
	Bytes        int64     `json:"bytes"`             // of files done
	Current      string    `json:"current,omitempty"` // the layer being scanned
	Findings     int       `json:"findings"`          // malicious files since the agent started
}

// CacheStatus sums the verdict cache up; [Verdicts] has the details.
type CacheStatus struct {
	Files    int     `json:"files"`
	Bytes    int64   `json:"bytes"`    // of memory
	MaxBytes int64   `json:"maxBytes"` // bound of bytes
	Hits     uint64  `json:"hits"`     // lookups that were answered in full
	Misses   uint64  `json:"misses"`   // all others
	HitRate  float64 `json:"hitRate"`  // 0 to 1; the server computes it
}

// StoreStatus is the verdict store on disk. Without a file and an error there
// is none.
type StoreStatus struct {
	File         string            `json:"file,omitempty"`
	Healthy      bool              `json:"healthy"`          // new verdicts survive a restart
	Error        string            `json:"error,omitempty"`  // why they do not, with a remedy
	Damage       string            `json:"damage,omitempty"` // what was wrong with the file when it was opened
	ReadOnly     bool              `json:"readOnly"`
	Bytes        int64             `json:"bytes"`        // on disk
	MaxBytes     int64             `json:"maxBytes"`     // bound of bytes
	Restored     int               `json:"restored"`     // verdicts, at the start
	NoRoom       int               `json:"noRoom"`       // verdicts of the file that the cache had no room for
	LoadMillis   int64             `json:"loadMillis"`   // how long the start took
	DamagedBytes int64             `json:"damagedBytes"` // that did not verify and were skipped
	Written      uint64            `json:"written"`      // verdicts, those of rewrites not counted
	Rewrites     uint64            `json:"rewrites"`     // of the whole file
	Lost         map[string]uint64 `json:"lost"`         // verdicts that did not reach the file, by reason, non-zero only
}

// MarksStatus is the kernel's ignore marks on clean files: such a file is opened
// without asking the agent until somebody opens it for writing.
type MarksStatus struct {
	Now     int               `json:"now"`
	Max     int               `json:"max"`     // bound of now
	Placed  uint64            `json:"placed"`  // since the agent started, as all that follows
	Broken  uint64            `json:"broken"`  // a writer broke the lease: scanned became dirty
	Evicted uint64            `json:"evicted"` // for others, over the bound
	Flushed uint64            `json:"flushed"` // taken back, such as when a scanner learned something
	Shed    uint64            `json:"shed"`    // given up because events needed their descriptors
	Skipped map[string]uint64 `json:"skipped"` // clean files that got no mark, by reason, non-zero only
}

// EventsStatus is what event readers met since the agent started.
type EventsStatus struct {
	Read             uint64            `json:"read"`             // permission events
	Unopened         map[string]uint64 `json:"unopened"`         // denied by the kernel, which could not open the file for the agent, by error
	ReadErrors       uint64            `json:"readErrors"`       // reads of events that failed otherwise
	Malformed        uint64            `json:"malformed"`        // always 0 on a sane kernel
	FailedAnswers    uint64            `json:"failedAnswers"`    // not taken by the kernel; the agent ends
	KernelComplaints uint64            `json:"kernelComplaints"` // of the kernel's own watchdog, about this agent
}

// DescriptorsStatus is how the agent's descriptors are shared out, and used.
type DescriptorsStatus struct {
	Limit  int               `json:"limit"` // their numbers are below it
	Open   int               `json:"open"`  // of any kind
	Shares []DescriptorShare `json:"shares"`
}

// A DescriptorShare is what one kind of descriptors may have.
type DescriptorShare struct {
	Kind string `json:"kind"` // reading, held, scanners, containers, other, wishes, marks
	Max  int    `json:"max"`
	Used *int   `json:"used,omitempty"` // where it is counted
}

// HitRate returns the part of lookups that were hits: 0 to 1, 0 without any.
func HitRate(hits, misses uint64) float64 {
	if hits == 0 {
		return 0
	}
	return float64(hits) / (float64(hits) + float64(misses))
}

// fillEmpty makes lists and maps without elements [] and {} instead of null, and
// computes what follows from the rest.
func fillEmpty(st *Status) {
	notNil(&st.Problems)
	notNil(&st.Tenants)
	notNil(&st.Containers)
	notNil(&st.Scanners)
	for i := range st.Tenants {
		notNilMap(&st.Tenants[i].Reasons)
	}
	for i := range st.Containers {
		notNil(&st.Containers[i].Marks)
	}
	fillAhead(&st.Ahead)
	fillKeeper(st)
	fillNRI(&st.NRI)
	st.Cache.HitRate = HitRate(st.Cache.Hits, st.Cache.Misses)
	notNilMap(&st.Store.Lost)
	notNilMap(&st.Marks.Skipped)
	notNilMap(&st.Events.Unopened)
	notNil(&st.Descriptors.Shares)
}

func fillAhead(a *AheadStatus) {
	if a.State == "" {
		a.State = AheadOff
	}
}

func notNil[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

func notNilMap(m *map[string]uint64) {
	if *m == nil {
		*m = map[string]uint64{}
	}
}
