package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-project/assay/internal/verdict"
)

const (
	// DefaultBytes bounds the file unless another bound is given.
	DefaultBytes = 256 << 20
	// minBytes is the smallest bound: an eighth of it has room for a batch.
	minBytes = 2 << 20
	// queueLength is how many records wait for the writer at most.
	queueLength = 16 << 10
	// batchLength is how many are written without waiting for more.
	batchLength = 4096
)

// Options of a store. The zero value is valid.
type Options struct {
	MaxBytes int64         // bound on disk space, while the file is rewritten too; 0 means DefaultBytes
	Every    time.Duration // how long a record waits for others before it is written; 0 means 1 s
	Retry    time.Duration // pause after a write that failed; 0 means 30 s
	Repair   time.Duration // pause between two rewrites for what was lost; 0 means 10 min
}

func (o *Options) setDefaults() {
	defaults := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	defaults(&o.Every, time.Second)
	defaults(&o.Retry, 30*time.Second)
	defaults(&o.Repair, 10*time.Minute)
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultBytes
	}
	o.MaxBytes = max(o.MaxBytes, minBytes)
}

// A Status is a store's account of itself.
type Status struct {
	File     string
	Err      error // why new verdicts do not survive now; nil if they do
	Damage   error // what was wrong with the file when it was opened; wraps ErrCorrupt
	ReadOnly bool
	Bytes    int64 // on disk
	MaxBytes int64

	Restored     int           // verdicts, at the start
	Refused      int           // verdicts that verified but that the cache had no room for
	LoadTime     time.Duration // of the start
	DamagedBytes int64         // that did not verify and were skipped

	Written  uint64 // records, those of rewrites not counted
	Batches  uint64 // writes
	Rewrites uint64 // of the whole file
	Lost     [NumLosses]uint64
}

// A Store is a file of verdicts and the goroutine that writes it. It is the
// journal of one cache. All methods may be called from many goroutines.
type Store struct {
	cache   *verdict.Cache
	options Options
	queue   chan item
	flush   chan chan error
	stop    chan struct{}
	stopped chan struct{}
	closing sync.Once
	closed  atomic.Bool
	lost    [NumLosses]atomic.Uint64
	gaps    atomic.Bool // something was lost that a rewrite would bring back

	mu     sync.Mutex
	status Status // guarded by mu
}

// Open opens the store in a directory, made if need be, puts back into the cache
// what the file holds and verifies, and starts to write. Call it before anything
// is kept in the cache, and [verdict.Cache.Attach] afterwards. The error is one
// of the sentinels or one of the filesystem; then there is no store, and the
// cache works without. A file on a read-only filesystem is read, and
// [Store.Status] says so.
func Open(dir string, cache *verdict.Cache, o Options) (*Store, error) {
	o.setDefaults()
	began := time.Now()
	d, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	w := &writer{dir: d, sums: newChecksummer(), encoder: newEncoder()}
	file, id, size, damaged, err := d.load(w.sums)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	w.file, w.id = file, id
	s := &Store{
		cache: cache, options: o, queue: make(chan item, queueLength), flush: make(chan chan error),
		stop: make(chan struct{}), stopped: make(chan struct{}),
		status: Status{File: filepath.Join(dir, fileName), MaxBytes: o.MaxBytes, ReadOnly: d.readOnly, Damage: damaged},
	}
	w.store = s
	if err := s.load(w, size); err != nil {
		return nil, errors.Join(err, w.close())
	}
	s.status.LoadTime = time.Since(began)
	go w.run()
	return s, nil
}

// load puts the file's records into the cache and readies the file for more.
func (s *Store) load(w *writer, size int64) error {
	l := newLoader(s.cache)
	r := reader{cache: s.cache, sums: w.sums, id: w.id, put: l.put}
	if err := r.read(w.file, size); err != nil {
		s.status.Damage = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	s.status.Restored, s.status.Refused = l.finish()
	w.end = r.got.end
	s.status.Bytes, s.status.DamagedBytes = w.end, r.got.bad+size-r.got.end
	if s.status.DamagedBytes > 0 {
		s.status.Damage = fmt.Errorf("%w: %d of %d bytes do not verify and were skipped", ErrCorrupt, s.status.DamagedBytes, size)
	}
	s.gaps.Store(s.status.Damage != nil)
	w.rewriteAt = grown(w.end)
	if w.dir.readOnly {
		s.status.Err = ErrReadOnly
		return nil
	}
	if err := w.file.Truncate(w.end); err != nil {
		return fmt.Errorf("verdict store: %w", classify(err))
	}
	return nil
}

// Append takes a verdict that the cache keeps. It never waits.
func (s *Store) Append(r verdict.Record) { s.enqueue(item{record: r}) }

// Drop takes back a layer. It never waits.
func (s *Store) Drop(scope verdict.Scope) {
	s.enqueue(item{record: verdict.Record{Scope: scope}, drop: true})
}

func (s *Store) enqueue(it item) {
	if s.closed.Load() {
		s.lost[LossClosed].Add(1)
		return
	}
	select {
	case s.queue <- it:
	default:
		s.lose(LossQueue, 1)
	}
}

// lose counts records that a rewrite would bring back.
func (s *Store) lose(why Loss, n int) {
	s.lost[why].Add(uint64(n))
	s.gaps.Store(true)
}

// Status describes the store now.
func (s *Store) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	for i := range s.lost {
		st.Lost[i] = s.lost[i].Load()
	}
	return st
}

func (s *Store) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Flush returns when all that was appended before is on disk, or why it is not.
// It tries to write even if the last attempt failed a moment ago.
func (s *Store) Flush(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case s.flush <- reply:
	case <-s.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close writes what is queued and gives the store up. If ctx ends first (a disk
// that hangs), it returns ctx.Err() and the rest follows when the disk lets it.
func (s *Store) Close(ctx context.Context) error {
	s.closed.Store(true)
	s.closing.Do(func() { close(s.stop) })
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
