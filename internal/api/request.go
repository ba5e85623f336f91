package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
)

// readBody reads a body of at most limit bytes, which must arrive in s.bodyTime.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(s.bodyTime)); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, refusef(http.StatusRequestEntityTooLarge, "", "the request's body is longer than %d bytes", tooLong.Limit)
	}
	if err != nil {
		return nil, refusef(http.StatusBadRequest, "", "the request's body broke off: %v", err)
	}
	// From here on a read only notices that the client hangs up.
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	return body, nil
}

// decodeAnnouncement decodes exactly one announcement, in which everything is
// known and usable.
func decodeAnnouncement(body []byte) (announce.Container, error) {
	var c announce.Container
	if err := decodeStrictly(body, &c); err != nil {
		return announce.Container{}, err
	}
	if err := c.Validate(); err != nil {
		return announce.Container{}, err
	}
	return c, nil
}

// decodeStrictly decodes exactly one JSON object in which everything is known.
func decodeStrictly(body []byte, v any) error {
	if !utf8.Valid(body) {
		return errors.New("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// query returns the request's parameters, each of which must be known and given
// once at most.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refusef(http.StatusBadRequest, "", "parameters: %v", err)
	}
	for name, values := range q {
		if !slices.Contains(known, name) || len(values) > 1 {
			return nil, refusef(http.StatusBadRequest, fmt.Sprintf("known, once each: %v", known), "parameter %q", name)
		}
	}
	return q, nil
}

// checkable makes sure that a client's descriptor can be scanned: a regular
// file, open for reading.
func checkable(fd int) error {
	const remedy = "open a regular file for reading and send that"
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return fmt.Errorf("look at the descriptor: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return refusef(http.StatusBadRequest, remedy, "the descriptor is not of a regular file")
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("look at the descriptor: %w", err)
	}
	if flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return refusef(http.StatusBadRequest, remedy, "the descriptor is not open for reading")
	}
	return nil
}
