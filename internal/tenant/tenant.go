// Package tenant is the configuration: what the file says, whether it makes
// sense, and which tenant a container belongs to. It is pure data: it starts
// nothing, opens nothing but the file, and knows no scanner but by name.
// cmd/assayd builds scanners from it, internal/guard applies the policies.
package tenant

import "time"

// A Config is one valid configuration file. It is immutable after Load.
type Config struct {
	Socket   string    // the agent's socket; default /run/assay/agent.sock
	State    string    // directory of what survives a restart; default /var/lib/assay
	Scanners []Scanner // in file order
	Tenants  []Tenant  // in file order: the first that matches wins
	Cache    Cache
	Keeper   Keeper
	Records  Records
	Exempt   []Match // containers that are not guarded at all; none asks for pod labels

	Trust        Trust
	Namespaces   []Namespace // in file order, each name once
	Containerd   Containerd
	NRI          NRI
	RecordLabels []string // keys of pod labels that records name; never nil
}

// A Scanner configures one scanner. Exactly one driver is set.
type Scanner struct {
	Name     string
	Clamd    *Clamd
	Hashlist *Hashlist
}

// Clamd configures the clamd driver.
type Clamd struct {
	Address     string // unix:/path or tcp:host:port
	Connections int    // sessions kept and scans at once; default 4
	MaxFileSize int64  // bytes; clamd's own MaxFileSize, above which it would not look; default 100MiB
}

// Hashlist configures the built-in hash list driver.
type Hashlist struct {
	Files []string // glob patterns of absolute paths
}

// A Match selects containers by what a tenant cannot forge. Its parts must all
// hold; a part that is empty asks for nothing, so the empty Match selects
// everything. Patterns are shell patterns (path.Match).
type Match struct {
	Namespaces      []string          // patterns; any one suffices
	NamespaceLabels map[string]string // patterns of the values, by key; all must hold
	PodLabels       map[string]string // the same of the pod's labels; only keys that Trust names
}

// A Mode says whether verdicts decide.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce" // verdicts decide
	Audit   Mode = "audit"   // everything is allowed at once, then scanned and recorded
)

// A KernelMarks setting says for which files the kernel may remember a verdict.
type KernelMarks string

// The settings of kernelMarks.
const (
	MarkLayers   KernelMarks = "layers"
	MarkAll      KernelMarks = "all"
	MarkReadonly KernelMarks = "readonly"
	MarkOff      KernelMarks = "off"
)

// VolumeMarks says how a mount is marked whose superblock is shared with the host.
type VolumeMarks string

// The settings of volumeMarks.
const (
	VolumeMount      VolumeMarks = "mount"      // a mount mark: sees opens through this mount only
	VolumeSuperblock VolumeMarks = "superblock" // a superblock mark: sees every open of that filesystem, the host's too
)

// A ScanAhead setting says which files are scanned before anybody opens them.
type ScanAhead string

// The settings of scanAhead.
const (
	AheadLayers ScanAhead = "layers" // image layers of a container that starts, in the background
	AheadOff    ScanAhead = "off"    // none
)

// An OnNewGeneration setting says what happens to known files when a scanner's
// knowledge changes. Old verdicts do not count any more in any case.
type OnNewGeneration string

// The settings of onNewGeneration.
const (
	GenerationRescan OnNewGeneration = "rescan" // files in use are scanned again in the background
	GenerationWait   OnNewGeneration = "wait"   // each is scanned again at its next open
)

// An Action is what happens to an open that got no clean or malicious verdict.
type Action string

// The actions.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// A Tenant is one tenant's policy. All fields have their defaults filled in.
type Tenant struct {
	Name          string
	Match         Match
	Mode          Mode // default enforce
	OnOpen        bool // `on`; default both
	OnExec        bool
	Stages        []Stage
	Deadline      time.Duration   // per event; default 5s
	OnError       Action          // default deny
	OnTimeout     Action          // default deny
	OnUnscannable Action          // default deny
	OnTooLarge    Action          // default deny
	MaxSize       int64           // bytes; 0 means no limit of Assay's own; default 0
	KernelMarks   KernelMarks     // default layers
	VolumeMarks   VolumeMarks     // default mount
	ScanAhead     ScanAhead       // default layers
	OnGeneration  OnNewGeneration // default rescan
	Grace         time.Duration   // how long openers wait for an agent that is gone; default 30s
	OnAgentGone   Action          // what they get then; default deny
	OnUnguarded   Action          // what happens to a container that cannot be guarded: allow starts it; default deny
	ExcludeMounts []string        // mount destinations inside the container, clean and absolute
}

// A Stage names the scanners that run in parallel, and how they decide.
type Stage struct {
	Scanners []string
	Quorum   int // clean verdicts needed; 0 means all
}

// Cache bounds what is remembered of verdicts.
type Cache struct {
	Memory int64 // bytes of memory; default 256MiB
	Disk   int64 // bytes below State; 0 means that nothing is stored; default 256MiB
}

// A KeeperBackend says what holds the containers while the agent is away.
type KeeperBackend string

// The backends.
const (
	KeeperProcess KeeperBackend = "process" // assay-keeper, started by systemd or by the agent
	KeeperSystemd KeeperBackend = "systemd" // the service manager's descriptor store
	KeeperOff     KeeperBackend = "off"     // nothing: containers are unguarded meanwhile
)

// Keeper configures what holds the containers while the agent is away.
type Keeper struct {
	Backend KeeperBackend // default process
	Socket  string        // of assay-keeper; default keeper.sock beside the agent's socket
}

// Records configures the record file. File == "" means none.
type Records struct {
	File    string
	MaxSize int64 // bytes; default 100MiB
	Keep    int   // rotated files kept; default 5
}
