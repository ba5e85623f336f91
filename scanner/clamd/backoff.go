package clamd

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/assay-project/assay/scanner"
)

// A backoff says when the next attempt to connect may be made.
type backoff struct {
	least, greatest time.Duration

	mu       sync.Mutex
	failures int // in a row
	until    time.Time
	last     error
}

func newBackoff(least, greatest time.Duration) *backoff {
	return &backoff{least: least, greatest: greatest}
}

// check returns nil if an attempt may be made now, or an error that wraps
// scanner.ErrUnavailable and the error of the last attempt.
func (b *backoff) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures == 0 || !time.Now().Before(b.until) {
		return nil
	}
	return fmt.Errorf("clamd: no new attempt yet after attempt %d: %w", b.failures, b.last)
}

// failed notes a failed attempt.
func (b *backoff) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	b.until = time.Now().Add(delay(b.failures, b.least, b.greatest, rand.Float64()))
	b.last = err
}

// succeeded notes that clamd is there.
func (b *backoff) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = 0
}

// delay returns the time to wait after so many failures in a row: doubling from
// least to greatest, less up to half by chance (0 to 1), so that many agents do
// not come back at one moment.
func delay(failures int, least, greatest time.Duration, chance float64) time.Duration {
	d := least
	for i := 1; i < failures && d < greatest; i++ {
		d *= 2
	}
	d = min(d, greatest)
	return d - time.Duration(chance*float64(d)/2)
}

// unavailable wraps why clamd cannot be used.
func unavailable(err error) error {
	return fmt.Errorf("clamd: %w: %w", scanner.ErrUnavailable, err)
}
