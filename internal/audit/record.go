// Package audit is what happens after an answer: records, counters, subscribers
// and the record file. Nothing in it may delay an answer: every entry point
// returns without waiting, and what does not fit is dropped and counted.
//
// It must not own decisions. internal/guard decides and answers first, then
// hands a [Record] over.
package audit

import "time"

// A Record is one event as users see it: one JSON object a line.
type Record struct {
	Time      time.Time `json:"time"`
	Seq       uint64    `json:"seq"` // ascending by one, over restarts too; a gap means lost records
	Tenant    string    `json:"tenant"`
	Container Container `json:"container"`
	Op        string    `json:"op"`   // see Operations
	Path      string    `json:"path"` // as the opener sees it; untrusted
	PID       int       `json:"pid"`  // in the agent's pid namespace
	Exe       string    `json:"exe"`  // of the opener; untrusted
	File      File      `json:"file"`
	Decision  string    `json:"decision"` // allow, deny
	Verdict   string    `json:"verdict"`  // clean, malicious, unscannable, error; "" if nothing was scanned
	Mark      bool      `json:"mark"`
	Source    string    `json:"source"` // kernel, cache, coalesced, scan, policy
	Reason    Reason    `json:"reason"`
	Detail    string    `json:"detail,omitempty"` // error text for people
	Scanners  []Scanner `json:"scanners,omitempty"`
	Micros    int64     `json:"micros"` // from reading the event to the answer
}

// A Container names the container of a record.
type Container struct {
	ID        string `json:"id"`
	Name      string `json:"name,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Image     string `json:"image,omitempty"` // as it was asked for
	// ImageDigest is that of the image's manifest or index.
	ImageDigest string            `json:"imageDigest,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"` // of the pod, as far as records.labels names them
}

// A File names the file of a record.
type File struct {
	Layer    string `json:"layer,omitempty"`    // layer digest, when proven pristine
	Identity string `json:"identity,omitempty"` // opaque; equality only
	Size     int64  `json:"size"`               // bytes
	Pristine bool   `json:"pristine"`
}

// A Scanner is one scanner's part in a record.
type Scanner struct {
	Name       string `json:"name"`
	Generation string `json:"generation,omitempty"`
	Verdict    string `json:"verdict"`
	Signature  string `json:"signature,omitempty"`
	Detail     string `json:"detail,omitempty"` // unscannable reason or error text
	Micros     int64  `json:"micros"`
}

// A Reason says why an event got its decision. The set is closed: each reason
// has a counter per tenant.
type Reason uint8

// The reasons. Those from ReasonAuditMode on can come with an allow of
// something unscanned or not clean; see [Reason.Unscanned].
const (
	ReasonClean       Reason = iota // scanned, clean: allowed
	ReasonMalicious                 // scanned, malicious: denied
	ReasonExecPair                  // second event of an exec whose first one was just judged
	ReasonNotRegular                // directory, device, socket or FIFO: nothing to scan
	ReasonNotSelected               // the tenant's `on` leaves this operation out
	ReasonAuditMode                 // the tenant only audits: allowed before the scan
	ReasonError                     // scanner error: onError
	ReasonTimeout                   // deadline reached: onTimeout
	ReasonOverload                  // queue full or descriptors scarce: onTimeout
	ReasonUnscannable               // unscannable: onUnscannable
	ReasonTooLarge                  // over maxSize or a scanner's size limit: onTooLarge
	ReasonSelf                      // opened by the agent itself: allowed, a defect worth a report
	ReasonOpenFailed                // the kernel could not open the file for the agent and denied
	ReasonStopping                  // the container is being released or the agent is stopping: onError
	ReasonDirty                     // no decision: a file that was known to be clean is being written to
	ReasonAgentGone                 // there was no agent, or it ended before it answered: onAgentGone
	ReasonUnguarded                 // a container that cannot be guarded: onUnguarded says whether it starts
	ReasonLate                      // no decision: a container was running before it was guarded
	NumReasons                      // number of reasons; not a reason
)

// reasonNames returns the reasons as they stand in records.
func reasonNames() [NumReasons]string {
	return [NumReasons]string{
		"clean", "malicious", "exec-pair", "not-regular", "not-selected", "audit-mode",
		"error", "timeout", "overload", "unscannable", "too-large", "self", "open-failed", "stopping", "dirty", "agent-gone",
		"unguarded", "late",
	}
}

// String returns the reason as it stands in records.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames()[r]
	}
	return "invalid"
}

// MarshalText encodes the reason by its name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Unscanned reports whether an allow for this reason let something through that
// no scanner has called clean although the tenant wanted it scanned. Every such
// allow is counted in assay's "unscanned allows".
func (r Reason) Unscanned() bool {
	switch r {
	case ReasonAuditMode, ReasonError, ReasonTimeout, ReasonOverload, ReasonUnscannable,
		ReasonTooLarge, ReasonSelf, ReasonStopping, ReasonAgentGone, ReasonUnguarded:
		return true
	default:
		return false
	}
}
