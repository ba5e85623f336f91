package guard

import (
	"sync"
	"time"

	"github.com/assay-project/assay/scanner"
)

// watching is the time between two looks at the scanners' generations. A look is
// some loads from memory. Events need no watch, they ask for themselves; what the
// kernel lets through by a mark does.
const watching = 200 * time.Millisecond

// generations notices when a scanner's knowledge changes.
type generations struct {
	guard *Guard
	quit  chan struct{}
	done  sync.WaitGroup
	known map[scannerOf]scanner.Generation
}

// scannerOf is a scanner as a tenant's policy has it.
type scannerOf struct {
	pool *pool
	name string
}

func watchGenerations(g *Guard) *generations {
	w := &generations{guard: g, quit: make(chan struct{}), known: make(map[scannerOf]scanner.Generation)}
	w.done.Go(w.run)
	return w
}

func (w *generations) run() {
	tick := time.NewTicker(watching)
	defer tick.Stop()
	for {
		w.look()
		select {
		case <-tick.C:
		case <-w.quit:
			return
		}
	}
}

// look flushes the marks of tenants whose scanners know something else than before,
// and has their files scanned again. A scanner that it sees for the first time may
// have learnt something since its first scan: marks go then, too.
func (w *generations) look() {
	now := make(map[scannerOf]scanner.Generation, len(w.known))
	for _, t := range w.guard.tenants() {
		changed, unseen := false, false
		for s := range t.policy.Load().scanners() {
			of := scannerOf{t, s.Name}
			now[of] = s.Generation()
			before, known := w.known[of]
			changed = changed || known && now[of] != before
			unseen = unseen || !known
		}
		if changed || unseen {
			w.guard.marks.flush(t)
		}
		if changed {
			w.guard.outdated(t)
		}
	}
	w.known = now
}

func (w *generations) stop() {
	if w == nil {
		return
	}
	close(w.quit)
	w.done.Wait()
}
