package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
)

// The kinds of a [ScanRequest].
const (
	ScanLayer = "layer"
	ScanImage = "image"
)

// A ScanRequest asks for a scan of all files of a layer or an image.
type ScanRequest struct {
	Kind   string `json:"kind"`             // layer, image
	Name   string `json:"name"`             // a layer's digest or directory; an image's name
	Tenant string `json:"tenant,omitempty"` // whose stages; "" is the default tenant
}

// A ScanLine is one line of the reply to a scan; exactly one field is set. The
// last line is Done or Failed.
type ScanLine struct {
	Progress    *ScanProgress     `json:"progress,omitempty"`
	Finding     *ScanFinding      `json:"finding,omitempty"`     // a malicious file
	Unscannable *ScanFinding      `json:"unscannable,omitempty"` // a file that scanners could not judge
	Error       *ScanError        `json:"error,omitempty"`       // a file or layer that could not be read, or a scanner that failed
	Failed      *announce.Refusal `json:"failed,omitempty"`      // the scan ends here, unfinished
	Done        *ScanTotals       `json:"done,omitempty"`
}

// A ScanProgress is how far a scan is. The totals are as far as counted.
type ScanProgress struct {
	Layers     int    `json:"layers"`
	LayersDone int    `json:"layersDone"`
	Files      int64  `json:"files"`
	FilesDone  int64  `json:"filesDone"`
	Bytes      int64  `json:"bytes"`
	BytesDone  int64  `json:"bytesDone"`
	Cached     int64  `json:"cached"`            // files whose verdict was known already
	Current    string `json:"current,omitempty"` // the layer or file at hand; untrusted
}

// A ScanFinding is a file and what scanners said of it.
type ScanFinding struct {
	Layer    string          `json:"layer,omitempty"`
	Path     string          `json:"path"` // within the layer; untrusted
	Size     int64           `json:"size"`
	Verdict  string          `json:"verdict"`          // malicious, unscannable
	Detail   string          `json:"detail,omitempty"` // for people
	Scanners []audit.Scanner `json:"scanners"`
}

// A ScanError says why a file, or a whole layer, was not scanned.
type ScanError struct {
	Layer  string `json:"layer,omitempty"`
	Path   string `json:"path,omitempty"`
	Error  string `json:"error"`
	Remedy string `json:"remedy,omitempty"`
}

// ScanTotals are the end of a scan.
type ScanTotals struct {
	Layers      int   `json:"layers"`
	Files       int64 `json:"files"`  // looked at
	Bytes       int64 `json:"bytes"`  // of these
	Cached      int64 `json:"cached"` // files whose verdict was known already
	Malicious   int64 `json:"malicious"`
	Unscannable int64 `json:"unscannable"`
	Errors      int64 `json:"errors"`
	Micros      int64 `json:"micros"`
}

// decodeScan decodes exactly one request, in which everything is known and usable.
func decodeScan(body []byte) (ScanRequest, error) {
	var req ScanRequest
	if err := decodeStrictly(body, &req); err != nil {
		return ScanRequest{}, err
	}
	switch {
	case req.Kind != ScanLayer && req.Kind != ScanImage:
		return ScanRequest{}, fmt.Errorf("kind %q is neither %s nor %s", req.Kind, ScanLayer, ScanImage)
	case req.Name == "" || strings.ContainsRune(req.Name, 0):
		return ScanRequest{}, fmt.Errorf("name %q names nothing", req.Name)
	}
	return req, nil
}

// scan has a layer or an image scanned and streams what comes of it until the
// scan ends, the client goes, or the agent stops.
func (s *Server) scan(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r, maxRequest)
	if err != nil {
		return err
	}
	req, err := decodeScan(body)
	if err != nil {
		return refusef(http.StatusBadRequest, `send {"kind":"layer","name":"sha256:…"} or {"kind":"image","name":"…"}`, "scan: %v", err)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &scanStream{w: w, rc: http.NewResponseController(w)}
	defer context.AfterFunc(s.streams, func() { //nolint:contextcheck // the server's lifetime bounds a stream, besides the request's
		cancel()
		// A client that does not read must not hold up the agent's end.
		_ = out.rc.SetWriteDeadline(time.Now().Add(partingTime))
	})()
	totals, err := s.backend.Scan(ctx, req, out.emit)
	if err != nil && s.streams.Err() != nil {
		err = refusef(http.StatusServiceUnavailable, "start the scan again when the agent is back; what it has judged need not be scanned again", "the agent stops")
	}
	if err != nil {
		s.logger.Warn("scan failed", "kind", req.Kind, "name", req.Name, "error", err)
	}
	return out.end(totals, err)
}

// errStreamOver says that nobody reads the lines of a scan any more.
var errStreamOver = errors.New("the client no longer follows the scan")

// A scanStream sends the lines of a scan to one client, at the client's rate.
type scanStream struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	mu      sync.Mutex
	started bool // something was sent
	over    bool // nothing may be sent any more
}

// emit sends a line.
func (o *scanStream) emit(line ScanLine) error {
	for _, f := range []*ScanFinding{line.Finding, line.Unscannable} {
		if f != nil {
			notNil(&f.Scanners)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send(line)
}

// end sends the last line. An error before the first line is returned, as
// nothing was sent.
func (o *scanStream) end(totals ScanTotals, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && !o.started {
		o.over = true
		return err
	}
	last := ScanLine{Done: &totals}
	if err != nil {
		last = ScanLine{Failed: asRefusal(err)}
	}
	_ = o.send(last) // fails only if the client is gone
	o.over = true
	return nil
}

// send writes a line. The caller holds mu.
func (o *scanStream) send(line ScanLine) error {
	if o.over {
		return errStreamOver
	}
	encoded, err := encodeJSON(line)
	if err != nil {
		return err
	}
	if !o.started {
		o.w.Header().Set("Content-Type", ndjsonType)
		o.started = true
	}
	if _, err := o.w.Write(encoded); err != nil {
		o.over = true
		return fmt.Errorf("%w: %w", errStreamOver, err)
	}
	if err := o.rc.Flush(); err != nil {
		o.over = true
		return fmt.Errorf("%w: %w", errStreamOver, err)
	}
	return nil
}
