package verdict

import "sync/atomic"

// A Flush says why something that was kept is kept no longer. The set is closed:
// each reason has a counter.
type Flush uint8

// The reasons of a flush. From FlushGeneration on they count verdicts, those
// before count files.
const (
	FlushLayerGone        Flush = iota // the layer was dropped
	FlushContainerStopped              // the container was released by its last user
	FlushColdScope                     // over the bound: a whole scope that had not been used for long
	FlushColdFile                      // over the bound: files that had not been used for long
	FlushShare                         // one container had more than its share of the bound
	FlushForgotten                     // the caller forgot the file, such as one that was written to
	FlushGeneration                    // replaced by the same scanner's verdict of another generation
	FlushContradicted                  // clean, but the same generation has now called this content malicious
	FlushCrowded                       // more scanners judged one file than a file has room for
	NumFlushes                         // number of reasons; not a reason
)

// String returns the reason as it stands in metrics.
func (f Flush) String() string {
	names := [NumFlushes]string{
		"layer-gone", "container-stopped", "cold-scope", "cold-file", "container-share",
		"forgotten", "generation", "contradicted", "crowded",
	}
	if f < NumFlushes {
		return names[f]
	}
	return "invalid"
}

// A Refusal says why a verdict was not kept. The set is closed: each reason has
// a counter.
type Refusal uint8

// The reasons of a refusal.
const (
	RefusedOutcome       Refusal = iota // neither clean nor malicious
	RefusedUnmarked                     // the scanner did not say that it may be remembered
	RefusedNoGeneration                 // the scanner's generation is unknown
	RefusedOldGeneration                // the scanner has moved on while it scanned
	RefusedSignature                    // the signature's name is longer than [MaxSignature]
	RefusedScope                        // nobody uses the scope: a container that has stopped, a layer that is gone
	RefusedConflict                     // the same generation has said otherwise, and malicious
	RefusedFull                         // restored from the store, but the bound is reached
	NumRefusals                         // number of reasons; not a reason
)

// String returns the reason as it stands in metrics.
func (r Refusal) String() string {
	names := [NumRefusals]string{
		"outcome", "unmarked", "no-generation", "old-generation", "signature", "scope", "conflict", "full",
	}
	if r < NumRefusals {
		return names[r]
	}
	return "invalid"
}

// A Lane separates callers of Lookup from each other: those that pass different
// lanes write to different counters. Any number will do; a thread's index is best.
type Lane uint32

// lanes are hit counters, one element per lane. The number is a power of two.
type lanes []lane

// A lane fills a cache line and the one that the hardware fetches with it.
type lane struct {
	hits, misses atomic.Uint64
	_            [112]byte
}

func (l lanes) count(at Lane, hit bool) {
	counter := &l[int(at)&(len(l)-1)]
	if hit {
		counter.hits.Add(1)
		return
	}
	counter.misses.Add(1)
}

func (l lanes) sum() (hits, misses uint64) {
	for i := range l {
		hits += l[i].hits.Load()
		misses += l[i].misses.Load()
	}
	return hits, misses
}
