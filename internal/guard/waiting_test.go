package guard

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/tenant"
)

// listed returns the tasks of a list, and checks its links both ways.
func (w *waitingList) listed(t *testing.T) []*task {
	t.Helper()
	var forth, back []*task
	for k := w.first; k != nil; k = k.after {
		forth = append(forth, k)
	}
	for k := w.last; k != nil; k = k.before {
		back = append(back, k)
	}
	slices.Reverse(back)
	if !slices.Equal(forth, back) || len(forth) != w.n {
		t.Errorf("%d tasks forth, %d back, %d counted", len(forth), len(back), w.n)
	}
	return forth
}

// TestWaitingList: tasks leave from any place, once, and the oldest is the first.
func TestWaitingList(t *testing.T) {
	p := &policy{Tenant: tenant.Tenant{Deadline: time.Minute}}
	now := time.Now()
	for name, order := range map[string][]int{
		"first come first gone": {0, 1, 2}, "last come first gone": {2, 1, 0}, "from the middle": {1, 0, 2}, "twice": {1, 1, 2, 2, 0, 0},
	} {
		var w waitingList
		tasks := make([]*task, 3)
		for i := range tasks {
			tasks[i] = &task{policy: p, began: now.Add(-time.Duration(10-i) * time.Hour)}
			w.remove(tasks[i]) // not there yet
			w.add(tasks[i])
		}
		left := slices.Clone(tasks)
		for _, i := range order {
			w.remove(tasks[i])
			left = slices.DeleteFunc(left, func(k *task) bool { return k == tasks[i] })
			if got := w.listed(t); !slices.Equal(got, left) {
				t.Errorf("%s: %d are left, want %d", name, len(got), len(left))
			}
			n, age, deadline := w.oldest()
			if n != len(left) || n > 0 && (age < time.Since(left[0].began)-time.Minute || deadline != time.Minute) || n == 0 && age != 0 {
				t.Errorf("%s: %d wait, the oldest for %v of %v", name, n, age, deadline)
			}
		}
	}
}

// TestWaitingListTogether adds and removes from many goroutines.
func TestWaitingListTogether(t *testing.T) {
	var w waitingList
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var mine []*task
			for i := range 500 {
				k := &task{policy: &policy{}}
				w.add(k)
				mine = append(mine, k)
				if i%3 == 0 {
					w.remove(mine[len(mine)/2])
				}
				w.oldest()
			}
			for _, k := range mine {
				w.remove(k)
			}
		})
	}
	all.Wait()
	if left := w.listed(t); len(left) != 0 || w.first != nil {
		t.Errorf("%d are left", len(left))
	}
}
