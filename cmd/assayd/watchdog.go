package main

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
)

// maxInterval is the longest time between two looks.
const maxInterval = 5 * time.Second

// A watchdog looks from time to time whether events are answered.
type watchdog struct {
	readers *fanotify.Readers
	tenants func() []guard.TenantHealth // nil: none
	kernel  *kernelWatch                // nil: none
	log     *slog.Logger
	last    []uint64
	stuck   atomic.Int64
	silent  atomic.Bool // events are not answered, whatever the readers do

	said     map[string]bool          // what is wrong with tenants, logged
	problems atomic.Pointer[[]string] // the same, for the status
}

// interval is how often to look: twice in systemd's watchdog time at least.
func (w *watchdog) interval() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return maxInterval
	}
	return min(every/2, maxInterval)
}

// look reports whether events are answered: at least one reader can serve them, no
// answer has failed, and no opener waits long after its deadline.
func (w *watchdog) look() bool {
	w.lookAtReaders()
	silent := w.lookAtTenants() || w.readers.Stats().FailedAnswers > 0
	w.silent.Store(silent)
	w.kernel.look()
	return w.answering()
}

// answering reports what look last found. It may be called by anybody.
func (w *watchdog) answering() bool {
	return !w.silent.Load() && w.stuck.Load() < int64(w.readers.Len())
}

// lookAtReaders counts those that are at work on the same group since the last look.
func (w *watchdog) lookAtReaders() {
	turns := w.readers.Turns()
	var stuck int64
	for i, now := range turns {
		if i < len(w.last) && now == w.last[i] && now%2 == 1 {
			stuck++
		}
	}
	w.last = turns
	if was := w.stuck.Swap(stuck); was != stuck {
		w.log.Warn("event readers that make no progress", "stuck", stuck, "readers", len(turns))
	}
}

// lookAtTenants keeps what is wrong with tenants, logs what is new or over, and
// reports whether deadlines do not work.
func (w *watchdog) lookAtTenants() (overdue bool) {
	if w.tenants == nil {
		return false
	}
	var problems []string
	said := make(map[string]bool)
	for _, h := range w.tenants() {
		overdue = overdue || h.Overdue
		for _, p := range ailments(&h) {
			problems = append(problems, fmt.Sprintf("tenant %s: %s", h.Tenant, p.long))
			key := h.Tenant + ": " + p.short
			if said[key] = true; !w.said[key] {
				w.log.Warn(p.short, "tenant", h.Tenant, "stuck", h.Stuck, "oldest", h.Oldest)
			}
		}
	}
	for key := range w.said {
		if !said[key] {
			w.log.Info("over: " + key)
		}
	}
	w.said = said
	w.problems.Store(&problems)
	return overdue
}

// An ailment is something wrong with a tenant, for the log and for the status.
type ailment struct{ short, long string }

func ailments(h *guard.TenantHealth) (all []ailment) {
	const restart = "; restart the scanner"
	if h.Exhausted {
		all = append(all, ailment{
			"no scan of a tenant comes back",
			fmt.Sprintf("no scan comes back, %d workers are lost and none is left: everything to be scanned is answered by onTimeout", h.Stuck) + restart,
		})
	} else if h.Stuck > 0 {
		all = append(all, ailment{
			"scans that do not come back long after their deadline",
			fmt.Sprintf("%d scans did not come back long after their deadline, and others have taken their workers' places", h.Stuck) + restart,
		})
	}
	if h.Stalled {
		all = append(all, ailment{
			"a tenant's scans make no progress",
			"events wait, and no scan has ended for longer than the deadline: they are answered by onTimeout" + restart,
		})
	}
	if h.Overdue {
		all = append(all, ailment{
			"an opener waits long after its deadline",
			fmt.Sprintf("an opener has waited for %v, long after its deadline: restart the agent", h.Oldest.Round(time.Second)),
		})
	}
	return all
}

// wrong lists what the last look found, for the status.
func (w *watchdog) wrong() (problems []string) {
	if n := w.stuck.Load(); n > 0 {
		problems = append(problems, fmt.Sprintf("%d of %d event readers make no progress (a file on a network or FUSE volume may hang)", n, w.readers.Len()))
	}
	if n := w.readers.Stats().FailedAnswers; n > 0 {
		problems = append(problems, fmt.Sprintf("the kernel did not take %d answers: their openers wait until the agent ends", n))
	}
	if tenants := w.problems.Load(); tenants != nil {
		problems = append(problems, *tenants...)
	}
	if p := w.kernel.problem(); p != "" {
		problems = append(problems, p)
	}
	return problems
}
