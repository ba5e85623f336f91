package guard

import (
	"sync"
	"time"
)

// A waitingList is a tenant's openers that wait for an answer, in the order in which
// they came. Entering and leaving costs a few pointers under a lock that is held for
// nothing else.
type waitingList struct {
	mu          sync.Mutex
	first, last *task
	n           int
}

// add puts a task at the end.
func (w *waitingList) add(k *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k.waits, k.before = true, w.last
	if w.last == nil {
		w.first = k
	} else {
		w.last.after = k
	}
	w.last = k
	w.n++
}

// remove takes a task out, unless somebody has or it never was there.
func (w *waitingList) remove(k *task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !k.waits {
		return
	}
	if k.before == nil {
		w.first = k.after
	} else {
		k.before.after = k.after
	}
	if k.after == nil {
		w.last = k.before
	} else {
		k.after.before = k.before
	}
	k.waits, k.before, k.after = false, nil, nil
	w.n--
}

// oldest returns how many wait, for how long the first of them does, and how long
// it may; both are 0 if nobody waits.
func (w *waitingList) oldest() (n int, age, deadline time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == nil {
		return 0, 0, 0
	}
	return w.n, time.Since(w.first.began), w.first.policy.Deadline
}
