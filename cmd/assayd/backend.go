package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

// healthPatience bounds how long a status waits for a scanner to say how it is.
const healthPatience = 2 * time.Second

// Announce guards a container.
func (a *agent) Announce(ctx context.Context, c announce.Container) (announce.Guarded, error) {
	return a.guard.Announce(ctx, c)
}

// Events returns the records.
func (a *agent) Events() *audit.Log { return a.records }

// A refusal is a request that cannot be granted, with the HTTP status that says why.
type refusal struct {
	announce.Refusal
	status int
}

// HTTPStatus returns the status.
func (r *refusal) HTTPStatus() int { return r.status }

func (r *refusal) Unwrap() error { return &r.Refusal }

func refused(status int, why error, remedy string) error {
	return &refusal{announce.Refusal{Message: why.Error(), Remedy: remedy}, status}
}

// noTenant says that the caller named none.
func noTenant(err error) error {
	return refused(http.StatusUnprocessableEntity, err, "`assay status` lists the tenants")
}

// Check scans a descriptor as the tenant's policy would.
func (a *agent) Check(ctx context.Context, fd int, tenantName, path string) (api.CheckResult, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return api.CheckResult{}, fmt.Errorf("the descriptor that was passed: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return api.CheckResult{}, refused(http.StatusUnprocessableEntity, errors.New("only regular files can be checked"), "copy the content into a file")
	}
	v, err := a.guard.Check(ctx, fd, st.Size, tenantName, path)
	if errors.Is(err, guard.ErrNoTenant) {
		return api.CheckResult{}, noTenant(err)
	}
	if err != nil {
		return api.CheckResult{}, err
	}
	return api.CheckResult{
		Path: path, Tenant: v.Tenant, Decision: v.Decision, Verdict: v.Result.Verdict.Outcome.String(),
		Reason: v.Reason, Detail: v.Detail, Size: v.Size,
		Scanners: guard.ScannerRecords(v.Result.Reports), Micros: v.Took.Microseconds(),
	}, nil
}

// Release ends the guard of a container.
func (a *agent) Release(_ context.Context, word string) (api.Released, error) {
	c, err := api.FindContainer(a.containerStatus(a.guard.Containers()), word)
	if err != nil {
		return api.Released{}, err
	}
	if !a.guard.Release(c.ID, "an operator asked for it") {
		return api.Released{}, refused(http.StatusNotFound, fmt.Errorf("container %s has just ended", c.ID), "`assay status` lists the containers")
	}
	a.log.Warn("a container runs unguarded from now on, because an operator asked for it", "container", c.ID, "tenant", c.Tenant, "pid", c.PID)
	return api.Released{ID: c.ID, Name: c.Name, Tenant: c.Tenant, PID: c.PID}, nil
}

// Status describes the agent.
func (a *agent) Status(ctx context.Context) api.Status {
	a.mu.Lock()
	cfg, built, reloadErr, shares := a.config, a.scanners, a.reloadErr, a.budget
	a.mu.Unlock()
	tenants, marks := a.guard.Tenants(), a.guard.Marks()
	containers := a.guard.Containers()
	held := make(chan api.KeeperStatus, 1)
	go func() { held <- a.keeper.status(ctx) }()
	s := api.Status{
		Version: version, PID: os.Getpid(), Started: a.started,
		ConfigFile: a.file, ConfigHash: cfg.Hash(), Readers: a.readers.Len(), Goroutines: runtime.NumGoroutine(),
		Tenants: tenantStatus(tenants), Containers: a.containerStatus(containers),
		Scanners: scannerStatus(ctx, cfg.Scanners, built),
		Records:  api.RecordsStatus(a.records.Status()),
		Cache:    a.cacheStatus(), Store: a.memory.storeStatus(), Marks: marksStatus(marks), Ahead: a.aheadStatus(),
		Keeper: <-held, NRI: a.nriStatus(cfg.NRI), TakeOver: takeOverStatus(&a.taken),
		Events: a.eventsStatus(), Descriptors: shares.status(tenants, marks),
	}
	s.Problems = append(a.keeper.keeperProblems(&s.Keeper), takeOverProblems(&a.taken, containers)...)
	s.Problems = append(s.Problems, nriProblems(&s.NRI)...)
	if reloadErr != nil {
		s.ReloadErr = reloadErr.Error()
		s.Problems = append(s.Problems, "the configuration file is not the one in force: "+s.ReloadErr)
	}
	for _, sc := range s.Scanners {
		if !sc.Healthy {
			s.Problems = append(s.Problems, fmt.Sprintf("scanner %s: %s", sc.Name, sc.Error))
		}
	}
	if s.Records.Error != "" {
		s.Problems = append(s.Problems, "records cannot be written: "+s.Records.Error)
	}
	if s.Store.Error != "" {
		s.Problems = append(s.Problems, "verdicts will not survive a restart: "+s.Store.Error)
	}
	s.Problems = append(s.Problems, a.watch.wrong()...)
	s.Problems = append(s.Problems, a.limitProblems(tenants, len(s.Containers))...)
	s.Healthy = len(s.Problems) == 0
	return s
}

func tenantStatus(states []guard.TenantState) []api.TenantStatus {
	list := make([]api.TenantStatus, 0, len(states))
	for _, t := range states {
		list = append(list, api.TenantStatus{
			Name: t.Name, Mode: string(t.Mode), Containers: t.Containers, Queued: t.Queued, InFlight: t.InFlight,
			Pending: t.Pending, OldestMicros: t.Oldest.Microseconds(), Held: t.Held, Stuck: t.Stuck,
			Scans: t.Scans, Marks: t.Marks,
			Allowed: t.Answers.Allowed, Denied: t.Answers.Denied, Unscanned: t.Answers.Unscanned, Reasons: t.Answers.Reasons,
		})
	}
	return list
}

func (a *agent) containerStatus(states []guard.ContainerState) []api.ContainerStatus {
	list := make([]api.ContainerStatus, 0, len(states))
	for _, c := range states {
		marks := make([]api.Mark, 0, len(c.Mounts))
		for _, m := range c.Mounts {
			marks = append(marks, api.Mark{Destination: m.Destination, FSType: m.FSType, Kind: string(m.Kind), Why: m.Why})
		}
		list = append(list, api.ContainerStatus{
			ID: c.ID, Name: c.Name, Namespace: c.Namespace, Pod: c.Pod, Tenant: c.Tenant, PID: c.PID,
			Since: c.Since, Marks: marks, Allowed: c.Answers.Allowed, Denied: c.Answers.Denied,
			Kept: a.keeper.holds(c.Keys),
		})
	}
	return list
}

// scannerStatus asks all scanners at once how they are.
func scannerStatus(ctx context.Context, cfg []tenant.Scanner, built map[string]scanner.Named) []api.ScannerStatus {
	ctx, cancel := context.WithTimeout(ctx, healthPatience)
	defer cancel()
	list := make([]api.ScannerStatus, len(cfg))
	var wg sync.WaitGroup
	for i, c := range cfg {
		s := built[c.Name]
		list[i] = api.ScannerStatus{Name: c.Name, Driver: scanners.Driver(c)}
		wg.Go(func() {
			if err := s.Health(ctx); err != nil {
				list[i].Error = err.Error()
			}
			list[i].Healthy = list[i].Error == ""
			list[i].Generation = string(s.Generation())
		})
	}
	wg.Wait()
	return list
}
