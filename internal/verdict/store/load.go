package store

import (
	"runtime"
	"sync"

	"github.com/assay-project/assay/internal/verdict"
)

const (
	// maxLoaders bounds the goroutines that put records into a cache. Beyond a few
	// of them, reading the file is what takes the time.
	maxLoaders = 4
	// loadBatch is how many records go to one of them at a time.
	loadBatch = 512
)

// A loader puts records into a cache on several processors, those of one file in
// their order.
type loader struct {
	cache *verdict.Cache
	lanes []loadLane
	wg    sync.WaitGroup // records that are under way, in batches
	ended sync.WaitGroup
}

// A loadLane is one goroutine's share: the files whose key says so.
type loadLane struct {
	batch             []verdict.Record
	work, spare       chan []verdict.Record
	restored, refused int
}

func newLoader(c *verdict.Cache) *loader {
	l := &loader{cache: c, lanes: make([]loadLane, min(maxLoaders, runtime.GOMAXPROCS(0)))}
	for i := range l.lanes {
		lane := &l.lanes[i]
		lane.work, lane.spare = make(chan []verdict.Record, 2), make(chan []verdict.Record, 4)
		l.ended.Go(func() { lane.run(l) })
	}
	return l
}

// run is a lane's goroutine.
func (lane *loadLane) run(l *loader) {
	for batch := range lane.work {
		for i := range batch {
			if l.cache.Restore(&batch[i]) {
				lane.restored++
			} else {
				lane.refused++
			}
		}
		l.wg.Done()
		lane.spare <- batch[:0] // has room: no more batches than that are made
	}
}

// put takes a record; it borrows it.
func (l *loader) put(it *item) {
	if it.drop {
		l.settle()
		l.cache.Drop(it.record.Scope)
		return
	}
	lane := &l.lanes[int(it.record.Key[0])%len(l.lanes)]
	if lane.batch = append(lane.batch, it.record); len(lane.batch) >= loadBatch {
		l.send(lane)
	}
}

// send hands a lane its batch.
func (l *loader) send(lane *loadLane) {
	l.wg.Add(1)
	lane.work <- lane.batch
	select {
	case lane.batch = <-lane.spare:
	default:
		lane.batch = make([]verdict.Record, 0, loadBatch)
	}
}

// settle returns when all that was put is in the cache.
func (l *loader) settle() {
	for i := range l.lanes {
		if len(l.lanes[i].batch) > 0 {
			l.send(&l.lanes[i])
		}
	}
	l.wg.Wait()
}

// finish settles, ends the goroutines and says what became of the records.
func (l *loader) finish() (restored, refused int) {
	l.settle()
	for i := range l.lanes {
		close(l.lanes[i].work)
	}
	l.ended.Wait()
	for i := range l.lanes {
		restored += l.lanes[i].restored
		refused += l.lanes[i].refused
	}
	return restored, refused
}
