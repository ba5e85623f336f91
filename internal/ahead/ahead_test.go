package ahead

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patienceOfTests = 10 * time.Second

// fake is layers of files in memory.
type fake struct {
	layers map[string][]File
	busy   atomic.Bool
	asked  atomic.Int32 // for whether anybody is busy
	gate   chan struct{}
	open   atomic.Int32

	mu      sync.Mutex
	scanned []string
}

func (f *fake) Open(j *Job) (Tree, error) {
	files, ok := f.layers[j.Dir]
	if !ok {
		return nil, errors.New("gone")
	}
	f.open.Add(1)
	return &fakeTree{f, files}, nil
}

func (f *fake) Busy(*Job) bool {
	f.asked.Add(1)
	return f.busy.Load()
}

func (f *fake) Scan(ctx context.Context, _ *Job, _ Tree, file *File) Result {
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return Failed
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scanned = append(f.scanned, file.Path)
	if file.Path == "bad" {
		return Malicious
	}
	return Clean
}

func (f *fake) done() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.scanned)
}

type fakeTree struct {
	of    *fake
	files []File
}

func (t *fakeTree) Files(context.Context) ([]File, error) { return slices.Clone(t.files), nil }

func (t *fakeTree) Close() error {
	t.of.open.Add(-1)
	return nil
}

func start(t *testing.T, f *fake) *Runner {
	t.Helper()
	r := Start(f)
	t.Cleanup(func() {
		r.Close()
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d trees are still open", n)
		}
	})
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patienceOfTests)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// TestOrder: a layer's files come smallest first, and each layer once.
func TestOrder(t *testing.T) {
	f := &fake{layers: map[string][]File{
		"/a": {{Path: "big", Size: 9}, {Path: "bad", Size: 1}, {Path: "b", Size: 3}, {Path: "a", Size: 3}},
		"/b": {{Path: "other", Size: 0}},
	}}
	r := start(t, f)
	for range 3 {
		for _, dir := range []string{"/a", "/b", "/gone"} {
			r.Add(Job{Layer: Layer{Name: dir, Dir: dir}, Key: dir})
		}
	}
	eventually(t, "all is scanned", func() bool { p := r.Progress(); return p.Done == 2 && p.Gone >= 1 && p.State == Idle })
	if got, want := f.done(), []string{"bad", "a", "b", "big", "other"}; !slices.Equal(got, want) {
		t.Errorf("scanned %v, want %v", got, want)
	}
	r.Add(Job{Layer: Layer{Dir: "/a"}, Key: "/a"}) // done
	r.Add(Job{Layer: Layer{Dir: "/b"}, Key: "/b for another policy"})
	eventually(t, "the new one is scanned", func() bool { return r.Progress().Done == 3 })
	p := r.Progress()
	if p.Files[Malicious] != 1 || p.Files[Clean] != 5 || p.Bytes != 16 || p.LastError == "" {
		t.Errorf("%+v", p)
	}
}

// TestPause: nothing is scanned while paused, and all of it afterwards.
func TestPause(t *testing.T) {
	f := &fake{layers: map[string][]File{"/a": {{Path: "1"}, {Path: "2"}, {Path: "3"}}}, gate: make(chan struct{})}
	r := start(t, f)
	r.Add(Job{Layer: Layer{Dir: "/a"}, Key: 1})
	f.gate <- struct{}{} // the first one
	eventually(t, "the second is begun", func() bool { return len(f.done()) == 1 })
	r.Pause(true)
	f.gate <- struct{}{}
	eventually(t, "the second is through", func() bool { return len(f.done()) == 2 })
	if p := r.Progress(); p.State != Paused {
		t.Errorf("%+v", p)
	}
	select {
	case f.gate <- struct{}{}:
		t.Error("a file was scanned during the pause")
	case <-time.After(50 * time.Millisecond):
	}
	r.Pause(false)
	f.gate <- struct{}{}
	eventually(t, "all is scanned", func() bool { return r.Progress().Done == 1 })
}

// TestBusy: openers go first.
func TestBusy(t *testing.T) {
	f := &fake{layers: map[string][]File{"/a": {{Path: "1"}}}}
	f.busy.Store(true)
	r := start(t, f)
	r.Add(Job{Layer: Layer{Dir: "/a"}, Key: 1})
	eventually(t, "the runner looks again and again", func() bool { return f.asked.Load() > 3 })
	if p := r.Progress(); p.State != Waiting || len(f.done()) != 0 {
		t.Errorf("%+v, scanned %v", p, f.done())
	}
	f.busy.Store(false)
	eventually(t, "it goes on", func() bool { return r.Progress().Done == 1 })
}

// TestCloseInTheMiddle: whatever the runner is doing, it ends.
func TestCloseInTheMiddle(t *testing.T) {
	for name, prepare := range map[string]func(f *fake, r *Runner){
		"scanning": func(*fake, *Runner) {},
		"paused":   func(_ *fake, r *Runner) { r.Pause(true) },
		"waiting":  func(f *fake, _ *Runner) { f.busy.Store(true) },
	} {
		f := &fake{layers: map[string][]File{"/a": {{Path: "1"}, {Path: "2"}}}, gate: make(chan struct{})}
		r := Start(f)
		prepare(f, r)
		for i := range 2 * maxQueue {
			r.Add(Job{Layer: Layer{Dir: "/a"}, Key: i})
		}
		if n := r.Progress().Queued; n > maxQueue {
			t.Errorf("%s: %d wait, over the bound", name, n)
		}
		r.Close()
		if n := f.open.Load(); n != 0 {
			t.Errorf("%s: %d trees are still open", name, n)
		}
	}
}

// TestRunEnds: a watcher's error and the end of the context end a job.
func TestRunEnds(t *testing.T) {
	f := &fake{layers: map[string][]File{"/a": {{Path: "1"}}}}
	boom := fmt.Errorf("enough")
	if err := Run(t.Context(), f, &Job{Layer: Layer{Dir: "/a"}}, stopper{boom}); !errors.Is(err, boom) || len(f.done()) != 0 {
		t.Errorf("%v, scanned %v", err, f.done())
	}
}

type stopper struct{ err error }

func (stopper) Found(int)                           {}
func (s stopper) Ready(context.Context, *Job) error { return s.err }
func (stopper) Did(*File, Result)                   {}
