package main

import (
	"context"
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

// An agent is the agent behind a socket. Its methods return failures that know
// their exit code.
type agent struct {
	client *api.Client
}

// newAgent returns the agent at --socket. Nothing is connected yet.
func newAgent(c *cli.Context) *agent { return &agent{client: api.NewClient(c.String(flagSocket))} }

// status asks the agent how it is.
func (a *agent) status(ctx context.Context) (api.Status, error) {
	st, err := a.client.Status(ctx)
	return st, agentFailure(err)
}

// check has file scanned; its name is what the agent calls it.
func (a *agent) check(ctx context.Context, file *os.File, tenant string) (api.CheckResult, error) {
	result, err := a.client.Check(ctx, file, tenant)
	return result, agentFailure(err)
}

// verdicts asks the agent what verdicts it keeps.
func (a *agent) verdicts(ctx context.Context) (api.Verdicts, error) {
	v, err := a.client.Verdicts(ctx)
	return v, agentFailure(err)
}

// explain asks the agent what it knows of a container's file.
func (a *agent) explain(ctx context.Context, container, path string) (api.Explanation, error) {
	e, err := a.client.Explain(ctx, container, path)
	return e, agentFailure(err)
}

// ahead pauses or resumes what the agent scans ahead of the first open.
func (a *agent) ahead(ctx context.Context, paused bool) (api.AheadStatus, error) {
	st, err := a.client.Ahead(ctx, paused)
	return st, agentFailure(err)
}

// release has the agent end the guard of a container.
func (a *agent) release(ctx context.Context, container string) (api.Released, error) {
	r, err := a.client.Release(ctx, container)
	return r, agentFailure(err)
}

// events calls show for each record that the filter selects, with the number of
// records that were lost before it.
func (a *agent) events(ctx context.Context, filter api.EventFilter, show func(r *audit.Record, lost uint64) error) error {
	lost := uint64(0)
	for e, err := range a.client.Events(ctx, filter) {
		switch {
		case err != nil:
			return agentFailure(err)
		case e.Lost > 0:
			lost += e.Lost
			continue
		}
		if err := show(&e.Record, lost); err != nil {
			return err
		}
		lost = 0
	}
	return nil
}

// agentFailure gives an error of the client its exit code.
func agentFailure(err error) error {
	var refusal *announce.Refusal
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &refusal):
		return usage(refusal.Remedy, "the agent refuses: %s", refusal.Message)
	default:
		return &failure{code: exitUnreachable, err: err} // says itself what to do
	}
}
