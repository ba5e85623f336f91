package ahead

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A File is one regular file of a layer.
type File struct {
	Path string // below the layer's directory
	Size int64  // bytes
	Ref  any    // the tree's own
}

// A Tree is the files of an unpacked layer.
type Tree interface {
	// Files lists the regular files that an overlay shows with their own content.
	Files(ctx context.Context) ([]File, error)
	Close() error
}

// A Layer is an unpacked layer to be scanned.
type Layer struct {
	Name string // what people call it
	Dir  string // on the host
}

// A Job is what is to be done about a layer.
type Job struct {
	Layer
	Tenant string
	// Key tells jobs apart: one that waits already, or that is done, is not taken again.
	Key any
	// Again leaves out files that nobody has asked for yet: a scan after a new
	// generation.
	Again bool
}

// A Result says what came of one file.
type Result uint8

// The results.
const (
	Skipped     Result = iota // not a file that needs a scan: gone, changed, known to be harmless by its size
	Known                     // every verdict is there already
	Clean                     // scanned
	Malicious                 // scanned
	Unscannable               // the scanners work but cannot judge it
	Failed                    // no verdict
)

// Scans does the work.
type Scans interface {
	// Open opens a layer. An error says that it is gone, or cannot be scanned ahead.
	Open(j *Job) (Tree, error)
	// Scan scans a file of a tree from Open, unless its verdicts are known.
	Scan(ctx context.Context, j *Job, t Tree, f *File) Result
	// Busy reports whether openers of the job's tenant wait.
	Busy(j *Job) bool
}

const (
	// maxQueue bounds the layers that wait.
	maxQueue = 4096
	// maxDone bounds what is remembered of layers that are done.
	maxDone = 16384
	// patience is how long a file waits for openers to be through. Under a load that
	// never ends there is still some progress.
	patience = 2 * time.Second
	// glance is the time between two looks at whether they are.
	glance = 5 * time.Millisecond
)

// A State says what the runner does.
type State string

// The states.
const (
	Idle     State = "idle"
	Scanning State = "scanning"
	Waiting  State = "waiting" // for openers to be through
	Paused   State = "paused"
)

// Progress is what came of the layers so far.
type Progress struct {
	State              State
	Since              time.Time // of the state
	Queued, Done, Gone int       // layers; gone ones could not be opened
	Layer              string    // the one being scanned
	LayerFiles         int       // files in it
	LayerFilesDone     int
	Files              [Failed + 1]uint64 // by result, of all layers
	Bytes              uint64             // of what was scanned
	LastError          string             // why a layer could not be scanned
}

// A Runner works through a queue of layers.
type Runner struct {
	scans Scans
	wake  chan struct{}
	ctx   context.Context //nolint:containedctx // the runner's life
	end   context.CancelFunc
	over  sync.WaitGroup

	mu       sync.Mutex
	queue    []Job
	waiting  map[any]bool
	done     map[any]bool
	paused   bool
	progress Progress
}

// Start starts a runner. Close ends it.
func Start(s Scans) *Runner {
	r := &Runner{scans: s, wake: make(chan struct{}, 1), waiting: map[any]bool{}, done: map[any]bool{}}
	r.turn(Idle)
	r.ctx, r.end = context.WithCancel(context.Background())
	r.over.Go(r.run)
	return r
}

// Close ends the runner, the scan under way included.
func (r *Runner) Close() {
	r.end()
	r.over.Wait()
}

// Add queues a job, unless the same one waits or is done. It never waits.
func (r *Runner) Add(j Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[j.Key] || r.done[j.Key] || len(r.queue) >= maxQueue {
		return
	}
	r.waiting[j.Key] = true
	r.queue = append(r.queue, j)
	r.nudge()
}

// Pause holds the runner up after the file it is at, or lets it go on.
func (r *Runner) Pause(paused bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = paused
	r.nudge()
}

// Progress describes the runner now.
func (r *Runner) Progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.progress
	p.Queued = len(r.queue)
	if r.paused {
		p.State = Paused
	}
	return p
}

// nudge wakes the runner. The caller holds mu.
func (r *Runner) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Runner) run() {
	runtime.LockOSThread() // never unlocked: its priority goes with the thread
	idlePriority()
	for r.ctx.Err() == nil {
		j, ok := r.next()
		if !ok {
			select {
			case <-r.wake:
			case <-r.ctx.Done():
			}
			continue
		}
		err := Run(r.ctx, r.scans, &j, r)
		r.finish(&j, err)
	}
}

// idlePriority lets this thread's I/O wait for everybody else's (ioprio_set(2)).
func idlePriority() {
	const whoProcess, classIdle, classShift = 1, 3, 13
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle<<classShift) // a courtesy: nothing depends on it
}

// next takes a job off the queue.
func (r *Runner) next() (Job, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused || len(r.queue) == 0 {
		r.turn(Idle)
		return Job{}, false
	}
	j := r.queue[0]
	r.queue = slices.Delete(r.queue, 0, 1)
	r.turn(Scanning)
	r.progress.Layer = j.Name
	r.progress.LayerFiles, r.progress.LayerFilesDone = 0, 0
	return j, true
}

// finish notes what came of a job.
func (r *Runner) finish(j *Job, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, j.Key)
	r.progress.Layer = ""
	switch {
	case r.ctx.Err() != nil:
		return
	case err != nil:
		r.progress.Gone++
		r.progress.LastError = j.Name + ": " + err.Error()
	default:
		r.progress.Done++
		if len(r.done) >= maxDone {
			clear(r.done)
		}
		r.done[j.Key] = true
	}
}

// A Watcher follows a job, and may hold it up.
type Watcher interface {
	// Found says how many files there are.
	Found(files int)
	// Ready returns when the next file's turn has come; an error ends the job.
	Ready(ctx context.Context, j *Job) error
	// Did says what came of a file.
	Did(f *File, r Result)
}

// Run scans a layer, the smallest files first.
func Run(ctx context.Context, s Scans, j *Job, w Watcher) (err error) {
	tree, err := s.Open(j)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	files, err := tree.Files(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Path, b.Path)) })
	w.Found(len(files))
	for i := range files {
		if err := w.Ready(ctx, j); err != nil {
			return err
		}
		w.Did(&files[i], s.Scan(ctx, j, tree, &files[i]))
	}
	return nil
}

// Found implements [Watcher].
func (r *Runner) Found(files int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.LayerFiles = files
}

// Did implements [Watcher].
func (r *Runner) Did(f *File, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.LayerFilesDone++
	r.progress.Files[result]++
	if result > Known {
		r.progress.Bytes += uint64(max(0, f.Size))
	}
}

// Ready implements [Watcher]: it waits while the runner is paused, and for some time
// while openers wait.
func (r *Runner) Ready(ctx context.Context, j *Job) error {
	if err := r.unpaused(ctx); err != nil {
		return err
	}
	if !r.scans.Busy(j) {
		return nil
	}
	r.say(Waiting)
	defer r.say(Scanning)
	tick, end := time.NewTicker(glance), time.NewTimer(patience)
	defer tick.Stop()
	defer end.Stop()
	for r.scans.Busy(j) {
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (r *Runner) unpaused(ctx context.Context) error {
	for ctx.Err() == nil {
		r.mu.Lock()
		paused := r.paused
		r.mu.Unlock()
		if !paused {
			return nil
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (r *Runner) say(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(s)
}

// turn notes a new state. The caller holds mu.
func (r *Runner) turn(s State) {
	if r.progress.State != s {
		r.progress.State, r.progress.Since = s, time.Now()
	}
}
