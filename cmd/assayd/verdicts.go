package main

import (
	"cmp"
	"context"
	"slices"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/internal/verdict/store"
	"github.com/assay-project/assay/scanner"
)

// Verdicts describes the cache and its store.
func (a *agent) Verdicts(context.Context) (api.Verdicts, error) {
	st := a.memory.Cache.Stats()
	v := api.Verdicts{
		Cache: a.cacheStatus(), Store: a.memory.storeStatus(),
		Flushed: nonZero(st.Flushed[:], func(i int) string { return verdict.Flush(i).String() }),   //nolint:gosec // a reason
		Refused: nonZero(st.Refused[:], func(i int) string { return verdict.Refusal(i).String() }), //nolint:gosec // a reason
		Flights: api.FlightStatus{
			Now: st.Flights.Now, Started: st.Flights.Started, Joined: st.Flights.Joined,
			HandedOver: st.Flights.HandedOver, Dispersed: st.Flights.Dispersed,
		},
	}
	for _, s := range st.Scopes {
		v.Scopes = append(v.Scopes, api.VerdictScope{
			Kind: s.Scope.Kind.String(), Label: s.Label, Users: s.Users, Files: s.Files, Bytes: s.Bytes,
			Hits: s.Hits, Misses: s.Misses, Age: s.Age,
		})
	}
	a.mu.Lock()
	cfg, built := a.config, a.scanners
	a.mu.Unlock()
	current := make(map[[2]string]scanner.Generation)
	for _, s := range cfg.Scanners {
		current[[2]string{s.Name, s.Hash()}] = built[s.Name].Generation()
	}
	for _, s := range st.Scanners {
		v.Scanners = append(v.Scanners, verdictScanner(s, current[[2]string{s.Name, s.Config}]))
	}
	return v, nil
}

// verdictScanner lists a scanner's generations, the current one first.
func verdictScanner(s verdict.ScannerStats, current scanner.Generation) api.VerdictScanner {
	out := api.VerdictScanner{Name: s.Name, Config: s.Config, Malicious: s.Malicious, Hits: s.Hits, Misses: s.Misses}
	if current != "" {
		out.Generations = []api.VerdictGeneration{{Generation: string(current), Verdicts: s.Verdicts[current], Current: true}}
	}
	var old []api.VerdictGeneration
	for gen, n := range s.Verdicts {
		if gen != current {
			old = append(old, api.VerdictGeneration{Generation: string(gen), Verdicts: n})
		}
	}
	slices.SortFunc(old, func(a, b api.VerdictGeneration) int {
		return cmp.Or(cmp.Compare(b.Verdicts, a.Verdicts), cmp.Compare(a.Generation, b.Generation))
	})
	out.Generations = append(out.Generations, old...)
	return out
}

// nonZero names counters that have counted.
func nonZero(counts []uint64, name func(int) string) map[string]uint64 {
	named := make(map[string]uint64)
	for i, n := range counts {
		if n > 0 {
			named[name(i)] = n
		}
	}
	return named
}

func (a *agent) cacheStatus() api.CacheStatus {
	t := a.memory.Cache.Totals()
	return api.CacheStatus{Files: t.Files, Bytes: t.Bytes, MaxBytes: t.MaxBytes, Hits: t.Hits, Misses: t.Misses}
}

func (m *memory) storeStatus() api.StoreStatus {
	if m.store == nil {
		s := api.StoreStatus{Healthy: m.storeErr == nil}
		if m.storeErr != nil {
			s.Error = m.storeErr.Error()
		}
		return s
	}
	st := m.store.Status()
	s := api.StoreStatus{
		File: st.File, Healthy: st.Err == nil, ReadOnly: st.ReadOnly, Bytes: st.Bytes, MaxBytes: st.MaxBytes,
		Restored: st.Restored, NoRoom: st.Refused, LoadMillis: st.LoadTime.Milliseconds(), DamagedBytes: st.DamagedBytes,
		Written: st.Written, Rewrites: st.Rewrites,
		Lost: nonZero(st.Lost[:], func(i int) string { return store.Loss(i).String() }), //nolint:gosec // a reason
	}
	if st.Err != nil {
		s.Error = st.Err.Error()
	}
	if st.Damage != nil {
		s.Damage = st.Damage.Error()
	}
	return s
}

func marksStatus(m guard.MarkStats) api.MarksStatus {
	return api.MarksStatus{
		Now: m.Now, Max: m.Max, Placed: m.Placed, Broken: m.Broken, Evicted: m.Evicted, Flushed: m.Flushed, Shed: m.Shed, Skipped: m.Skipped,
	}
}

// Ahead pauses or resumes the scanning ahead of the first open.
func (a *agent) Ahead(_ context.Context, paused bool) (api.AheadStatus, error) {
	a.guard.PauseAhead(paused)
	return a.aheadStatus(), nil
}

func (a *agent) aheadStatus() api.AheadStatus {
	p := a.guard.Ahead()
	if p == nil {
		return api.AheadStatus{State: api.AheadOff}
	}
	var done int64
	for _, n := range p.Files {
		done += int64(n) //nolint:gosec // files of this node
	}
	s := api.AheadStatus{
		State: string(p.State), Since: p.Since, LayersQueued: p.Queued, LayersDone: p.Done, Current: p.Layer,
		FilesDone: done, FilesTotal: done + int64(p.LayerFiles-p.LayerFilesDone),
		Bytes: int64(p.Bytes), Findings: int(p.Files[ahead.Malicious]), //nolint:gosec // of this node
	}
	if p.Layer != "" {
		s.LayersQueued++
	}
	return s
}
