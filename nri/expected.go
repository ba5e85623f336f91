package nri

import (
	"container/list"
	"sync"

	"github.com/assay-project/assay/internal/announce"
)

// mostExpected is more containers than a node has.
const mostExpected = 4096

// expected is what the runtime has said of containers that it has created. It is
// bounded: a runtime that never tells of a container's end costs no more than that.
type expected struct {
	mu     sync.Mutex
	most   int
	byID   map[string]*list.Element // of *expectation
	oldest *list.List
}

type expectation struct {
	container announce.Container
	pod       string // the id of its pod's sandbox
}

func newExpected(most int) *expected {
	return &expected{most: most, byID: map[string]*list.Element{}, oldest: list.New()}
}

// add remembers a container, in place of what was known of it. The one that was
// remembered first is forgotten if there are too many.
func (e *expected) add(c announce.Container, pod string) {
	if c.ID == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(e.byID[c.ID])
	e.byID[c.ID] = e.oldest.PushBack(&expectation{c, pod})
	if len(e.byID) > e.most {
		e.remove(e.oldest.Front())
	}
}

func (e *expected) get(id string) (announce.Container, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if at := e.byID[id]; at != nil {
		return of(at).container, true
	}
	return announce.Container{}, false
}

func (e *expected) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(e.byID[id])
}

func (e *expected) forgetPod(pod string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for at := e.oldest.Front(); at != nil; {
		next := at.Next()
		if of(at).pod == pod {
			e.remove(at)
		}
		at = next
	}
}

func (e *expected) len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.byID)
}

// remove takes an element out; nil is none. The caller holds e.mu.
func (e *expected) remove(at *list.Element) {
	if at == nil {
		return
	}
	e.oldest.Remove(at)
	delete(e.byID, of(at).container.ID)
}

func of(at *list.Element) *expectation {
	return at.Value.(*expectation) //nolint:errcheck,forcetypeassert // nothing else is put in
}
