package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/assay-project/assay/internal/announce"
)

const (
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

// A statusError is an error that knows its HTTP status. A [Backend] may return
// one; without it a *announce.Refusal is 409 and any other error 500.
type statusError interface {
	error
	HTTPStatus() int
}

// A refusal is a statusError of the server's own.
type refusal struct {
	announce.Refusal
	status int
}

func (r *refusal) HTTPStatus() int { return r.status }

// Unwrap lets errors.As find the *announce.Refusal.
func (r *refusal) Unwrap() error { return &r.Refusal }

func refusef(status int, remedy, format string, args ...any) error {
	return &refusal{announce.Refusal{Message: fmt.Sprintf(format, args...), Remedy: remedy}, status}
}

// encodeError returns the status and the body of the reply to a failed request.
func encodeError(err error) (int, []byte) {
	status := http.StatusInternalServerError
	if _, refused := errors.AsType[*announce.Refusal](err); refused {
		status = http.StatusConflict
	}
	body := asRefusal(err)
	if se, ok := errors.AsType[statusError](err); ok {
		status = se.HTTPStatus()
	}
	encoded, err := encodeJSON(body)
	if err != nil { // two strings always encode
		return http.StatusInternalServerError, []byte("{}\n")
	}
	return status, encoded
}

// asRefusal returns an error as a client gets it.
func asRefusal(err error) *announce.Refusal {
	if r, refused := errors.AsType[*announce.Refusal](err); refused {
		return r
	}
	return &announce.Refusal{Message: err.Error(), Remedy: "see the agent's log, such as with journalctl -u assayd"}
}

// encodeJSON encodes v as one line.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode the reply: %w", err)
	}
	return buf.Bytes(), nil
}
