package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
)

var errScanEnded = errors.New("it ended the scan without a result")

// Scan has the agent scan a layer or an image and returns the lines of its
// account as they come. The last element has Done or Failed, or an error; there
// is no other error. Leaving the loop hangs up, which ends the scan.
func (c *Client) Scan(ctx context.Context, req ScanRequest) iter.Seq2[ScanLine, error] {
	return func(yield func(ScanLine, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		body, err := json.Marshal(req)
		if err != nil {
			yield(ScanLine{}, fmt.Errorf("encode the request: %w", err))
			return
		}
		resp, err := c.do(ctx, http.MethodPost, PathScan, bytes.NewReader(body), nil)
		if err != nil {
			yield(ScanLine{}, err)
			return
		}
		defer resp.Body.Close()
		left, err := eachLine(resp.Body, func(line ScanLine, _ error) bool {
			return yield(line, nil) && line.Done == nil && line.Failed == nil
		})
		if left {
			return
		}
		if err == nil {
			err = errScanEnded
		}
		yield(ScanLine{}, c.broken(ctx, err))
	}
}
