package main

import (
	"fmt"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/guard"
)

// limitProblems lists what the agent has too few of.
func (a *agent) limitProblems(tenants []guard.TenantState, containers int) (problems []string) {
	a.mu.Lock()
	shares := a.budget
	a.mu.Unlock()
	if p := shares.problem(); p != "" {
		problems = append(problems, p)
	}
	if p := checkGroups(len(tenants), containers); p != "" {
		problems = append(problems, p)
	}
	for i := range tenants {
		if !tenants[i].Reserve {
			problems = append(problems, fmt.Sprintf("tenant %s has no spare fanotify group: if the limit is reached its containers are refused; "+
				"raise fs.fanotify.max_user_groups and reload", tenants[i].Name))
		}
	}
	return problems
}

// sayLimits logs what a new configuration has too few of.
func (a *agent) sayLimits() {
	for _, p := range a.limitProblems(a.guard.Tenants(), len(a.guard.Containers())) {
		a.log.Warn(p)
	}
}

// eventsStatus sums up what event readers met.
func (a *agent) eventsStatus() api.EventsStatus {
	st := a.readers.Stats()
	s := api.EventsStatus{
		Read: st.Events, Unopened: st.Unopened, ReadErrors: st.ReadErrors, Malformed: st.Malformed, FailedAnswers: st.FailedAnswers,
	}
	if k := a.watch.kernel; k != nil {
		s.KernelComplaints = k.complaints.Load()
	}
	return s
}
