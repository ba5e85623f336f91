package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"

	"github.com/assay-project/assay/internal/audit"
)

// An Event is one line of [PathEvents]: a record or, if Lost is not 0, the
// number of records that were overwritten before they could be sent.
type Event struct {
	audit.Record

	Lost uint64 `json:"lost"`
}

// Events returns the records that the filter selects. The sequence ends after
// the last one kept or, with Follow, with ctx's error or [ErrUnreachable] when
// the agent stops; an error is its last element. Leaving the loop hangs up.
func (c *Client) Events(ctx context.Context, f EventFilter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		path := PathEvents
		if q := f.values().Encode(); q != "" {
			path += "?" + q
		}
		resp, err := c.do(ctx, http.MethodGet, path, nil, nil)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer resp.Body.Close()
		left, err := eachLine(resp.Body, yield)
		switch {
		case left:
		case err != nil:
			yield(Event{}, c.broken(ctx, err))
		case f.Follow:
			yield(Event{}, c.broken(ctx, errStreamEnded))
		}
	}
}

var errStreamEnded = errors.New("it ended the stream of events")

// eachLine yields the lines of a stream, decoded, until its end, which is no
// error, or until the loop is left.
func eachLine[T any](r io.Reader, yield func(T, error) bool) (left bool, err error) {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) == 0 {
				return false, nil
			}
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return false, err
		}
		var e T
		if err := json.Unmarshal(line, &e); err != nil {
			return false, &gibberishError{err}
		}
		if !yield(e, nil) {
			return true, nil
		}
	}
}
