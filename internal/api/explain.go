package api

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// An Explanation is all that the agent knows of one file of a container, and
// what the next open and the next exec of it will be answered. Asking for it
// changes nothing: nothing is scanned, counted or marked.
type Explanation struct {
	Container ExplainedContainer `json:"container"`
	Policy    ExplainedPolicy    `json:"policy"`
	File      ExplainedFile      `json:"file"`
	Layer     ExplainedLayer     `json:"layer"`
	Scanners  []ExplainedScanner `json:"scanners"` // of the policy, in the order of its stages
	Mark      ExplainedMark      `json:"mark"`
	Open      Prediction         `json:"open"` // the next open
	Exec      Prediction         `json:"exec"` // the next exec
	Notes     []string           `json:"notes"`
}

// An ExplainedContainer is the container that was asked about.
type ExplainedContainer struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Image     string    `json:"image,omitempty"`
	PID       int       `json:"pid"`
	Since     time.Time `json:"since,omitzero"` // guarded since
}

// An ExplainedPolicy is what decides.
type ExplainedPolicy struct {
	Tenant        string   `json:"tenant"`
	Mode          string   `json:"mode"`        // enforce, audit
	On            []string `json:"on"`          // open, exec
	KernelMarks   string   `json:"kernelMarks"` // as configured
	MaxSize       int64    `json:"maxSize"`     // bytes; 0 is no limit
	OnError       string   `json:"onError"`
	OnTimeout     string   `json:"onTimeout"`
	OnUnscannable string   `json:"onUnscannable"`
	OnTooLarge    string   `json:"onTooLarge"`
}

// An ExplainedFile is the file.
type ExplainedFile struct {
	Path     string `json:"path"` // as asked
	Type     string `json:"type"` // regular, directory, symlink, fifo, socket, device
	Size     int64  `json:"size"`
	Identity string `json:"identity,omitempty"` // opaque; "" if there is none
	Mount    Mark   `json:"mount"`              // the mount it is on, with what marks it
}

// An ExplainedLayer is the image layer that the file comes from, or why none.
type ExplainedLayer struct {
	Pristine  bool   `json:"pristine"`            // proven to be as the layer has it
	Digest    string `json:"digest,omitempty"`    // "" if no runtime's storage names it
	Directory string `json:"directory,omitempty"` // of the layer, on the host
	Depth     int    `json:"depth"`               // 0 is the topmost
	Reason    string `json:"reason"`              // one word; "pristine" if it is
	Text      string `json:"text,omitempty"`      // the reason in a sentence; the server knows one for each word
}

// An ExplainedScanner is one scanner of the policy.
type ExplainedScanner struct {
	Name       string         `json:"name"`
	Stage      int            `json:"stage"`                // from 1
	Generation string         `json:"generation,omitempty"` // wanted now; "" if the scanner does not know it
	Verdicts   []KnownVerdict `json:"verdicts"`             // kept, of whatever generation
}

// A KnownVerdict is a verdict that is kept.
type KnownVerdict struct {
	Verdict    string `json:"verdict"` // clean, malicious
	Signature  string `json:"signature,omitempty"`
	Generation string `json:"generation"`
	Current    bool   `json:"current"` // it counts: of the generation and configuration in force
	Scope      string `json:"scope"`   // layer, container
}

// The states of an [ExplainedMark].
const (
	MarkNone   = "none"   // every open asks the agent
	MarkPlaced = "marked" // the kernel allows opens by itself
	MarkBroken = "broken" // a writer broke the lease: every open asks again
)

// The states of a lease.
const (
	LeaseNone     = "none"
	LeaseHeld     = "held"
	LeaseBreaking = "breaking" // a writer waits for it
)

// An ExplainedMark is whether the kernel answers for the agent.
type ExplainedMark struct {
	State string    `json:"state"`          // none, marked, broken
	Lease string    `json:"lease"`          // none, held, breaking
	Since time.Time `json:"since,omitzero"` // of the state
	Why   string    `json:"why,omitempty"`  // it is not marked
}

// How a [Prediction] says that an event will be answered.
const (
	AnswerAtOnce = "at-once"
	AnswerScan   = "scan"
)

// A Prediction is what the next event will be answered if nothing changes until
// then.
type Prediction struct {
	Answer   string   `json:"answer"`             // at-once, scan
	Decision string   `json:"decision,omitempty"` // allow, deny; "" if the scan decides
	Source   string   `json:"source,omitempty"`   // of an answer at once: kernel, cache, instant, policy
	Reason   string   `json:"reason,omitempty"`   // as in a record; "" if the scan decides
	Scanners []string `json:"scanners"`           // those that will be asked; after an answer at once in audit mode
	Detail   string   `json:"detail,omitempty"`   // for people
}

// explain tells what is known of a file.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "container", "path")
	if err != nil {
		return err
	}
	container, path := q.Get("container"), q.Get("path")
	if container == "" {
		return refusef(http.StatusBadRequest, "name a container: its id, the start of its id, or its name", "parameter container is missing")
	}
	if !strings.HasPrefix(path, "/") || strings.ContainsRune(path, 0) {
		return refusef(http.StatusBadRequest, "name the file as the container sees it, beginning with /", "parameter path=%q is no absolute path", path)
	}
	e, err := s.backend.Explain(r.Context(), container, path)
	if err != nil {
		return err
	}
	fillExplanation(&e)
	return reply(w, e)
}

func fillExplanation(e *Explanation) {
	notNil(&e.Policy.On)
	notNil(&e.Scanners)
	for i := range e.Scanners {
		notNil(&e.Scanners[i].Verdicts)
	}
	notNil(&e.Open.Scanners)
	notNil(&e.Exec.Scanners)
	notNil(&e.Notes)
	e.Layer.Text = cmp.Or(e.Layer.Text, layerText(e.Layer.Reason))
	e.Mark.State = cmp.Or(e.Mark.State, MarkNone)
	e.Mark.Lease = cmp.Or(e.Mark.Lease, LeaseNone)
}

// Explain asks the agent what it knows of a file. The container may be an id,
// the unambiguous start of one, or a name; path is as the container sees it.
func (c *Client) Explain(ctx context.Context, container, path string) (Explanation, error) {
	q := url.Values{"container": {container}, "path": {path}}
	return call[Explanation](ctx, c, http.MethodGet, PathExplain+"?"+q.Encode(), nil, nil)
}

// FindContainer returns the container that an operator calls word: an id, the
// start of one, or a name. The error has its HTTP status and a remedy.
func FindContainer(all []ContainerStatus, word string) (ContainerStatus, error) {
	if i := slices.IndexFunc(all, func(c ContainerStatus) bool { return c.ID == word }); i >= 0 {
		return all[i], nil
	}
	var found []ContainerStatus
	var ids []string
	for _, c := range all {
		if word != "" && (strings.HasPrefix(c.ID, word) || c.Name == word) {
			found, ids = append(found, c), append(ids, c.ID)
		}
	}
	switch len(found) {
	case 0:
		return ContainerStatus{}, refusef(http.StatusNotFound, "`assay status` lists the containers that are guarded",
			"no guarded container has the id or name %q", word)
	case 1:
		return found[0], nil
	default:
		return ContainerStatus{}, refusef(http.StatusConflict, "use more of the id: "+strings.Join(ids, ", "),
			"%q could be any of %d containers", word, len(found))
	}
}
