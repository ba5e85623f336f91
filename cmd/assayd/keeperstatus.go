package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/tenant"
)

// note remembers whether the keeper holds an entry.
func (l *link) note(b backend, key string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.backend != b: // lost meanwhile, with all it held
	case err == nil:
		l.kept[key] = true
		delete(l.refused, key)
	case errors.Is(err, keeper.ErrRefused):
		l.refused[key] = err.Error()
	}
}

// knows reports whether the key is of something that we guard.
func (l *link) knows(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, refused := l.refused[key]
	return l.kept[key] || refused
}

// unnote forgets an entry that is over.
func (l *link) unnote(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.kept, key)
	delete(l.refused, key)
}

// holds reports whether the keeper has all of the entries.
func (l *link) holds(keys []string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(keys, func(key string) bool { return !l.kept[key] })
}

// status describes the keeper. It asks a process itself, over a connection of its own:
// the agent's could be waiting for an answer.
func (l *link) status(ctx context.Context) api.KeeperStatus {
	l.mu.Lock()
	st := api.KeeperStatus{Backend: string(l.cfg.Backend), Lost: l.lost, Trouble: l.trouble}
	b := l.backend
	if b != nil {
		st.PID, st.Since = b.PID(), l.since
	}
	l.mu.Unlock()
	if l.cfg.Backend != tenant.KeeperProcess {
		return st
	}
	st.Socket = l.cfg.Socket
	if b == nil {
		return st
	}
	held, err := askKeeper(ctx, l.cfg.Socket)
	if err != nil {
		st.Trouble = fmt.Sprintf("it does not say how it is: %v", err)
		return st
	}
	st.Version = held.Version
	for _, e := range held.Entries {
		st.Entries = append(st.Entries, keptEntry(&e))
	}
	slices.SortFunc(st.Entries, func(a, b api.KeptEntry) int { return strings.Compare(a.Key, b.Key) })
	return st
}

// askKeeper asks a keeper how it is. One that is stuck costs two seconds.
func askKeeper(ctx context.Context, socket string) (*keeper.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, healthPatience)
	defer cancel()
	c, err := keeper.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Status()
}

func keptEntry(e *keeper.Held) api.KeptEntry {
	return api.KeptEntry{
		Key: e.Key, Grace: e.Grace.Microseconds(), Fallback: e.Fallback.String(),
		Leases: e.Leases, Pending: e.Pending, Answering: e.Answering, Answered: e.Answered,
	}
}

// keeperProblems says what is wrong with who holds the containers.
func (l *link) keeperProblems(st *api.KeeperStatus) []string {
	var problems []string
	if st.Trouble != "" {
		problems = append(problems, "the keeper fails, and if the agent ended, its containers would be unguarded: "+st.Trouble+
			" (another one is tried every second; see systemctl status assay-keeper, and \"assay doctor\")")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, why := range l.refused {
		problems = append(problems, fmt.Sprintf("the keeper does not hold %s: %s (raise LimitNOFILE of assay-keeper.service, then restart the container)", key, why))
	}
	return problems
}

// takeOverStatus is the last take-over, nil if there was none.
func takeOverStatus(t *guard.TakeOver) *api.TakeOverStatus {
	if t.At.IsZero() {
		return nil
	}
	return &api.TakeOverStatus{
		At: t.At, Took: t.Took.Microseconds(), Since: t.Since, Why: t.Why,
		Containers: t.Containers, Gone: t.Gone, Settled: t.Settled, Answered: t.Answered,
		Unguarded: t.Unguarded, Failed: t.Failed,
	}
}

// takeOverProblems names the containers that a take-over came too late for, as long as
// they run, and those that it failed for, until they are guarded again.
func takeOverProblems(t *guard.TakeOver, now []guard.ContainerState) []string {
	since := make(map[string]time.Time, len(now))
	for _, c := range now {
		since[c.ID] = c.Since
	}
	var unguarded, failed []string
	for _, id := range t.Unguarded {
		// One that was restarted has been announced since.
		if at, guarded := since[id]; guarded && at.Before(t.At) {
			unguarded = append(unguarded, id)
		}
	}
	for _, id := range t.Failed {
		if _, guarded := since[id]; !guarded {
			failed = append(failed, id)
		}
	}
	var problems []string
	if len(unguarded) > 0 {
		problems = append(problems, fmt.Sprintf("containers ran without a gate between the last agent's end and %s: %s (they are guarded again; restart those that you do not trust)",
			t.At.Format(time.RFC3339), strings.Join(unguarded, ", ")))
	}
	if len(failed) > 0 {
		problems = append(problems, fmt.Sprintf("containers could not be taken over from the last agent, and run unguarded: %s (restart them; if they have ended, restart the agent)",
			strings.Join(failed, ", ")))
	}
	return problems
}
