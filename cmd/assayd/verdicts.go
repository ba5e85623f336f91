package main

import (
	"context"
	"net/http"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
)

// A notYet refuses what this agent cannot do.
type notYet struct{ announce.Refusal }

// HTTPStatus is 501.
func (*notYet) HTTPStatus() int { return http.StatusNotImplemented }

func (n *notYet) Unwrap() error { return &n.Refusal }

func cannot(what string) error {
	return &notYet{announce.Refusal{Message: "this agent cannot " + what, Remedy: "use a version of assayd that can"}}
}

// Verdicts describes a cache that holds nothing.
func (a *agent) Verdicts(context.Context) (api.Verdicts, error) { return api.Verdicts{}, nil }

// Explain is not there yet.
func (a *agent) Explain(context.Context, string, string) (api.Explanation, error) {
	return api.Explanation{}, cannot("explain a file")
}

// Scan is not there yet.
func (a *agent) Scan(context.Context, api.ScanRequest, func(api.ScanLine) error) (api.ScanTotals, error) {
	return api.ScanTotals{}, cannot("scan layers and images")
}

// Ahead is not there yet.
func (a *agent) Ahead(context.Context, bool) (api.AheadStatus, error) {
	return api.AheadStatus{}, cannot("scan ahead of the first open")
}
