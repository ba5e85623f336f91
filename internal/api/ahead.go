package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// maxRequest bounds the body of a request that is not an announcement.
const maxRequest = 16 << 10

// An aheadRequest is the body of a POST to [PathAhead].
type aheadRequest struct {
	Paused *bool `json:"paused"`
}

// ahead pauses or resumes the scanning ahead of the first open.
func (s *Server) ahead(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r, maxRequest)
	if err != nil {
		return err
	}
	var req aheadRequest
	if err := decodeStrictly(body, &req); err != nil || req.Paused == nil {
		return refusef(http.StatusBadRequest, `send {"paused":true} or {"paused":false}`, "the request makes no sense%s", because(err))
	}
	st, err := s.backend.Ahead(r.Context(), *req.Paused)
	if err != nil {
		return err
	}
	fillAhead(&st)
	return reply(w, st)
}

// because appends an error, if there is one, to a message.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// Ahead has the agent pause or resume its scanning ahead of the first open, and
// returns the state that this led to.
func (c *Client) Ahead(ctx context.Context, paused bool) (AheadStatus, error) {
	body, err := json.Marshal(aheadRequest{Paused: &paused})
	if err != nil {
		return AheadStatus{}, fmt.Errorf("encode the request: %w", err)
	}
	return call[AheadStatus](ctx, c, http.MethodPost, PathAhead, bytes.NewReader(body), nil)
}
