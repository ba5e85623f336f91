package main

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/assay-project/assay/internal/fanotify"
)

// A watchdog looks from time to time whether event readers make progress.
type watchdog struct {
	readers *fanotify.Readers
	log     *slog.Logger
	last    []uint64
	stuck   atomic.Int64
}

// interval is how often to look: twice in systemd's watchdog time, or every five
// seconds.
func (w *watchdog) interval() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return 5 * time.Second
	}
	return every / 2
}

// look reports whether at least one reader can serve events. A reader at work on
// the same group since the last look is stuck.
func (w *watchdog) look() bool {
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
	return stuck < int64(len(turns))
}

// answering reports what look last found. It may be called by anybody.
func (w *watchdog) answering() bool { return w.stuck.Load() < int64(w.readers.Len()) }
