package store

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/verdict"
)

// A writer is the goroutine that owns the file.
type writer struct {
	store   *Store
	dir     *directory
	sums    checksummer
	encoder *encoder
	file    *os.File
	id      fileID
	end     int64 // of what is valid in the file

	batch     []item
	buffer    []byte
	rewriteAt int64     // size of the file at which rewriting it is worth the effort
	retryAt   time.Time // after a failure
	repairAt  time.Time // after a rewrite
}

// grown returns the size at which a file that was this large is rewritten.
func grown(size int64) int64 { return 2*size + 8<<20 }

// run writes until the store is closed.
func (w *writer) run() {
	defer close(w.store.stopped)
	defer w.close() // what was written is synced; there is nobody to tell
	timer := time.NewTimer(w.store.options.Every)
	defer timer.Stop()
	for {
		select {
		case it := <-w.store.queue:
			if len(w.batch) == 0 {
				timer.Reset(w.store.options.Every)
			}
			w.batch = append(w.batch, it)
			if len(w.batch) >= batchLength && w.write(false) != nil {
				timer.Reset(w.store.options.Retry)
			}
		case <-timer.C:
			if w.write(false) != nil {
				timer.Reset(w.store.options.Retry)
			}
		case reply := <-w.store.flush:
			w.drain()
			reply <- w.write(true)
		case <-w.store.stop:
			w.drain()
			_ = w.write(true) // in the status
			return
		}
	}
}

// drain takes what is queued now.
func (w *writer) drain() {
	for {
		select {
		case it := <-w.store.queue:
			w.batch = append(w.batch, it)
		default:
			return
		}
	}
}

// write writes the batch, and the whole file anew if that is due. After a failure
// it does not try again for a while, unless it has to.
func (w *writer) write(must bool) error {
	s := w.store
	switch {
	case w.dir.readOnly:
		s.lost[LossReadOnly].Add(uint64(len(w.batch)))
		w.batch = w.batch[:0]
		return ErrReadOnly
	case !must && time.Now().Before(w.retryAt):
		s.lose(LossWrite, len(w.batch))
		w.batch = w.batch[:0]
		return s.Status().Err
	}
	err := classify(w.try())
	if err != nil {
		w.retryAt = time.Now().Add(s.options.Retry)
	}
	w.batch = w.batch[:0]
	s.update(func(st *Status) { st.Err, st.Bytes = err, w.end })
	return err
}

// try appends the batch. What does not get into the file is counted.
func (w *writer) try() error {
	half := w.store.options.MaxBytes / 2
	repair := w.store.gaps.Load() && !time.Now().Before(w.repairAt)
	rewritten := false
	if w.end >= min(half, w.rewriteAt) || repair {
		// Without a repair, there may still be room for the batch.
		err := w.rewrite()
		if err != nil && (!repair || len(w.batch) == 0) {
			w.store.lose(LossWrite, len(w.batch))
			return err
		}
		rewritten = err == nil
	}
	w.encode()
	if len(w.batch) == 0 && !rewritten {
		return w.store.Status().Err // nothing was tried, so nothing is better
	}
	if w.end+int64(len(w.buffer)) > half {
		w.store.lose(LossBound, len(w.batch))
		w.rewriteAt = w.end // the next batch finds it due
		return nil
	}
	if err := w.append(); err != nil {
		w.store.lose(LossWrite, len(w.batch))
		return err
	}
	if n := len(w.batch); n > 0 {
		w.store.update(func(st *Status) { st.Written += uint64(n); st.Batches++ })
	}
	return nil
}

// encode turns the batch into the blocks that come next in the file. What the
// format has no room for is taken out.
func (w *writer) encode() {
	w.buffer = w.buffer[:0]
	kept := w.batch[:0]
	for i := range w.batch {
		it := &w.batch[i]
		if !fits(it) {
			w.store.lost[LossTooLong].Add(1)
			continue
		}
		if !w.encoder.add(it) {
			w.buffer = w.encoder.appendBlock(w.buffer, w.id, w.end+int64(len(w.buffer)))
			w.encoder.add(it)
		}
		kept = append(kept, *it)
	}
	w.buffer = w.encoder.appendBlock(w.buffer, w.id, w.end+int64(len(w.buffer)))
	w.batch = kept
}

// append writes the buffer and waits for the disk. After an error the space is
// given back, and what is written next takes the same place.
func (w *writer) append() error {
	if len(w.buffer) == 0 {
		return nil
	}
	_, err := w.file.WriteAt(w.buffer, w.end)
	if err == nil {
		err = datasync(w.file)
	}
	if err != nil {
		return errors.Join(err, w.file.Truncate(w.end))
	}
	w.end += int64(len(w.buffer))
	return nil
}

func datasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// rewrite replaces the file by one with what the cache holds, as far as there is
// room: the hottest layers come first.
func (w *writer) rewrite() error {
	// Whatever is lost from here on may be missing in what is written.
	w.store.gaps.Store(false)
	w.repairAt = time.Now().Add(w.store.options.Repair)
	next := *w
	err := next.snapshot()
	if err != nil {
		w.store.gaps.Store(true)
		return err
	}
	old := w.file
	w.file, w.id, w.end = next.file, next.id, next.end
	w.rewriteAt = grown(w.end)
	w.store.update(func(st *Status) { st.Rewrites++; st.Bytes = w.end })
	_ = old.Close() // it has no name any more
	return nil
}

// snapshot writes a new file and puts it in the old one's place.
func (w *writer) snapshot() error {
	var err error
	if w.file, w.id, err = w.dir.create(w.sums); err != nil {
		return err
	}
	if err = w.fill(); err == nil {
		err = w.dir.install(w.file)
	}
	if err != nil {
		return errors.Join(err, w.dir.discard(w.file))
	}
	return nil
}

// fill writes the cache's records to an empty file, up to three eighths of the
// bound: an eighth is then left for what is appended.
func (w *writer) fill() error {
	w.end, w.buffer = headerBytes, nil
	w.encoder.reset()
	defer w.encoder.reset()
	var err error
	left := 0 // records beyond the bound
	w.store.cache.Records(func(r verdict.Record) bool {
		it := item{record: r}
		switch {
		case left > 0:
			left++
		case !fits(&it) || w.encoder.add(&it):
		default:
			if left, err = w.flushBlock(); err == nil && left == 0 {
				w.encoder.add(&it)
			}
		}
		return err == nil
	})
	if err == nil && left == 0 {
		left, err = w.flushBlock()
	}
	w.store.lost[LossBound].Add(uint64(left))
	return err
}

// flushBlock writes the block that is being made to a new file, if the bound
// allows it; otherwise it returns how many records are left.
func (w *writer) flushBlock() (left int, err error) {
	n := int(w.encoder.n)
	w.buffer = w.encoder.appendBlock(w.buffer[:0], w.id, w.end)
	if w.end+int64(len(w.buffer)) > w.store.options.MaxBytes/8*3 {
		return n, nil
	}
	if _, err = w.file.WriteAt(w.buffer, w.end); err != nil {
		return 0, err
	}
	w.end += int64(len(w.buffer))
	return 0, nil
}

func (w *writer) close() error { return errors.Join(w.file.Close(), w.dir.close()) }
