package clamd

import (
	"sync"
	"sync/atomic"

	"github.com/assay-project/assay/scanner"
)

// Knowledge is the last known generation. The zero value knows none.
//
// Several questions may be under way at once, and the answer to one may wait
// behind a long stream, so moments are numbered: of two answers the second is
// only known to be the newer one if it was asked for after the first was in.
type knowledge struct {
	clock atomic.Uint64
	gen   atomic.Pointer[scanner.Generation]

	mu      sync.Mutex
	learned uint64 // the moment at which gen was learned
}

// now returns the generation. It does not block.
func (k *knowledge) now() scanner.Generation {
	if gen := k.gen.Load(); gen != nil {
		return *gen
	}
	return ""
}

// ask returns the moment at which a question is sent.
func (k *knowledge) ask() uint64 { return k.clock.Add(1) }

// learn notes the answer to a question that was sent at the moment asked, unless
// it may be older than what is known. Then a later question will tell.
func (k *knowledge) learn(asked uint64, gen scanner.Generation) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if asked < k.learned {
		return
	}
	k.learned = k.clock.Add(1)
	if k.now() != gen {
		k.gen.Store(&gen)
	}
}
