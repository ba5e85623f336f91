package api

import (
	"context"
	"net/http"
)

// The kinds of a [VerdictScope].
const (
	ScopeLayer     = "layer"
	ScopeContainer = "container"
)

// Verdicts is what the verdict cache and its store hold.
type Verdicts struct {
	Cache    CacheStatus       `json:"cache"`
	Scopes   []VerdictScope    `json:"scopes"`
	Scanners []VerdictScanner  `json:"scanners"`
	Flushed  map[string]uint64 `json:"flushed"` // what is kept no longer, by reason, non-zero only
	Refused  map[string]uint64 `json:"refused"` // verdicts that were not kept, by reason, non-zero only
	Flights  FlightStatus      `json:"flights"`
	Store    StoreStatus       `json:"store"`
}

// A VerdictScope is whose files verdicts are kept for.
type VerdictScope struct {
	Kind    string  `json:"kind"`  // layer, container
	Label   string  `json:"label"` // layer digest, or identity of its directory; container id
	Users   int     `json:"users"` // containers that use it now
	Files   int     `json:"files"`
	Bytes   int64   `json:"bytes"`   // of memory
	Hits    uint64  `json:"hits"`    // lookups that were answered in full
	Misses  uint64  `json:"misses"`  // all others
	HitRate float64 `json:"hitRate"` // 0 to 1; the server computes it
	Age     int     `json:"age"`     // since the last lookup: 0 is now, 64 one turnover of the cache
}

// A VerdictScanner is one scanner's share. A scanner whose configuration was
// changed is listed once for each that verdicts are kept of.
type VerdictScanner struct {
	Name        string              `json:"name"`
	Config      string              `json:"config"`      // hash of its configuration, opaque
	Generations []VerdictGeneration `json:"generations"` // those that verdicts are kept of, and the current one
	Malicious   int                 `json:"malicious"`   // of the verdicts kept
	Hits        uint64              `json:"hits"`        // verdicts that were wanted and known
	Misses      uint64              `json:"misses"`      // verdicts that were wanted and not known
	HitRate     float64             `json:"hitRate"`     // 0 to 1; the server computes it
}

// A VerdictGeneration is the verdicts of one state of a scanner's knowledge.
type VerdictGeneration struct {
	Generation string `json:"generation"`
	Verdicts   int    `json:"verdicts"`
	Current    bool   `json:"current"` // only these answer openers
}

// FlightStatus tells what became of openers that found no verdict.
type FlightStatus struct {
	Now        int    `json:"now"`        // scans under way
	Started    uint64 `json:"started"`    // scans begun by the first opener
	Joined     uint64 `json:"joined"`     // openers that waited on another's scan
	HandedOver uint64 `json:"handedOver"` // openers that gave up and let one that waited try
	Dispersed  uint64 `json:"dispersed"`  // scans whose result could not be shared
}

// verdicts describes the cache and the store.
func (s *Server) verdicts(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	v, err := s.backend.Verdicts(r.Context())
	if err != nil {
		return err
	}
	fillVerdicts(&v)
	return reply(w, v)
}

func fillVerdicts(v *Verdicts) {
	notNil(&v.Scopes)
	notNil(&v.Scanners)
	notNilMap(&v.Flushed)
	notNilMap(&v.Refused)
	notNilMap(&v.Store.Lost)
	v.Cache.HitRate = HitRate(v.Cache.Hits, v.Cache.Misses)
	for i := range v.Scopes {
		v.Scopes[i].HitRate = HitRate(v.Scopes[i].Hits, v.Scopes[i].Misses)
	}
	for i := range v.Scanners {
		notNil(&v.Scanners[i].Generations)
		v.Scanners[i].HitRate = HitRate(v.Scanners[i].Hits, v.Scanners[i].Misses)
	}
}

// Verdicts asks the agent what its verdict cache holds.
func (c *Client) Verdicts(ctx context.Context) (Verdicts, error) {
	return call[Verdicts](ctx, c, http.MethodGet, PathVerdicts, nil, nil)
}
