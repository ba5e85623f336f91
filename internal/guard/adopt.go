package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/keeper"
)

// clockTolerance is by how much the wall clock may differ after an absence, where
// slewing is no set clock.
const clockTolerance = 200 * time.Millisecond

// A TakeOver is what came of taking containers over from an agent that is gone.
type TakeOver struct {
	At         time.Time     // when it began
	Took       time.Duration // until the last container's events were read again
	Since      time.Time     // when the last agent was lost; zero if there was none
	Why        string        // how it was lost
	Containers int           // taken over
	Gone       int           // ended meanwhile
	Settled    uint64        // openers that the last agent had in hand
	Answered   uint64        // openers that the keeper answered
	// Unguarded are containers that nobody kept: from the end of the last agent until
	// now they ran without a gate.
	Unguarded []string
	Failed    []string // containers that could not be taken over: from now on they run without a gate
}

// errOver says that a container has ended, or is exempt by now: there is nothing to
// take over.
var errOver = errors.New("nothing to guard any more")

// Adopt guards the containers of an agent that is gone, and takes the entries over.
// When it returns, their events are read; what their mounts have become meanwhile is
// looked at in the background. It is called once, before the first announcement.
func (g *Guard) Adopt(entries []keeper.Entry, a keeper.Absence) TakeOver {
	t := &takeOver{guard: g, absence: a, result: TakeOver{At: time.Now(), Since: a.Since, Why: a.Why}}
	// Groups that are shared come before their members.
	var containers []keeper.Entry
	for i := range entries {
		if isShared(entries[i].Key) {
			t.shared(&entries[i])
		} else {
			containers = append(containers, entries[i])
		}
	}
	t.all(containers)
	t.result.Took = time.Since(t.result.At)
	for _, pool := range g.tenants() {
		pool.shared.tidy()
	}
	return t.result
}

func isShared(key string) bool { return strings.HasPrefix(key, sharedKey) }

// takeOver is a take-over under way.
type takeOver struct {
	guard   *Guard
	absence keeper.Absence

	mu     sync.Mutex
	result TakeOver
}

// all takes over containers, several at once: settling what the last agent had in
// hand takes some milliseconds each.
func (t *takeOver) all(entries []keeper.Entry) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(len(entries), runtime.NumCPU()) {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(entries); i = next.Add(1) - 1 {
				t.one(&entries[i])
			}
		})
	}
	wg.Wait()
}

// one takes over one container.
func (t *takeOver) one(e *keeper.Entry) {
	defer e.Close()
	nobody := len(e.Files) == 0
	c, err := t.container(e)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, errOver):
		t.result.Gone++
	case err != nil:
		t.result.Failed = append(t.result.Failed, idOf(e.Key))
		t.guard.log.Error("a container cannot be taken over; it is unguarded from now on", "container", e.Key, "error", err,
			"remedy", "restart it")
	case nobody:
		t.result.Containers++
		t.result.Unguarded = append(t.result.Unguarded, c.info.ID)
	default:
		t.result.Containers++
	}
	if err != nil && t.guard.keeper != nil {
		_ = t.guard.keeper.Forget(e.Key) // a keeper that is gone has forgotten
	}
}

// container makes a guarded container of an entry.
func (t *takeOver) container(e *keeper.Entry) (*container, error) {
	g, nobody := t.guard, len(e.Files) == 0
	var st kept
	if err := json.Unmarshal(e.State, &st); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if st.Container == nil {
		return nil, errors.New("state without a container")
	}
	proc, err := adoptProcess(e.Take(keeper.Process), st.Container.PID, st.Started)
	if err != nil {
		return nil, err
	}
	c := &container{
		guard: g, info: *st.Container, key: e.Key, since: st.Since, proc: proc,
		mntns: unix.Stat_t{Dev: st.Device, Ino: st.Namespace}, root: st.Root, onHost: st.OnHost,
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background()) // the container's life
	c.clockSet = st.ClockSet || t.absence.ClockMoved > clockTolerance
	if !g.admitted(c) {
		proc.close()
		g.log.Info("container exempt", "container", c.info.ID, "namespace", c.info.Namespace)
		return nil, errOver
	}
	if err := t.join(c, e, st.Sharing, nobody); err != nil {
		c.dismantle()
		return nil, err
	}
	return c, nil
}

// admitted chooses the container's tenant, or reports that it is exempt.
func (g *Guard) admitted(c *container) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.config.Exempts(g.subject(&c.info)) {
		return false
	}
	g.assign(c)
	return true
}

// join gives the container back its groups, and follows it from now on.
func (t *takeOver) join(c *container, e *keeper.Entry, sharing, nobody bool) error {
	settled, err := t.adoptGroups(c, e)
	if err == nil && c.group == nil {
		if shared := &c.pool.Load().shared; sharing && shared.isAdopted() {
			err = shared.join(c)
		} else {
			err = c.join()
		}
	}
	if err == nil && nobody {
		err = c.renew(c.pool.Load().policy.Load()) // it has no marks at all
	}
	if err != nil {
		return err
	}
	if err := t.guard.enter(c); err != nil {
		return err
	}
	c.absent(e.Fallback, e.Answered, settled)
	t.mu.Lock()
	t.result.Settled += settled
	t.result.Answered += e.Answered
	t.mu.Unlock()
	t.guard.follow.Go(func() { c.catchUp() })
	return nil
}

// catchUp places the marks again: the container's mounts and its policy may have
// changed meanwhile. Those that it had are in place all the time.
func (c *container) catchUp() {
	g := c.guard
	p := c.pool.Load().policy.Load()
	if err := c.renew(p); err != nil {
		if c.ctx.Err() == nil && c.proc.alive() == nil {
			g.log.Error("marks of a container could not be renewed; it keeps those it has",
				"container", c.info.ID, "error", err)
		}
		return
	}
	g.renew(c) // a reload may have come in between
	c.keep()
	g.anticipate(c)
	g.log.Info("container taken over", "container", c.info.ID, "tenant", c.pool.Load().name, "pid", c.info.PID, "marks", c.marks())
}

// adoptGroups serves the groups of an entry again, and returns how many openers the
// last agent had in hand.
func (t *takeOver) adoptGroups(c *container, e *keeper.Entry) (settled uint64, err error) {
	if fd := e.Take(keeper.Group); fd >= 0 {
		group, n, err := t.group(fd, e.Fallback)
		if err != nil {
			return 0, err
		}
		settled += n
		c.group = group
		if err := t.guard.readers.Add(group, c, c.unopened); err != nil {
			return 0, err
		}
	}
	if fd := e.Take(keeper.Aside); fd >= 0 {
		group, n, err := t.group(fd, e.Fallback)
		if err != nil {
			return 0, err
		}
		settled += n
		if c.aside, err = serveAside(c, group); err != nil {
			return 0, err
		}
	}
	return settled, nil
}

// group takes a group over: without marks on files, whose verdicts and leases have
// ended with the last agent, and with nobody who waits for that agent's answer.
func (t *takeOver) group(fd int, fallback fanotify.Decision) (*fanotify.Group, uint64, error) {
	group, err := fanotify.AdoptGroup(fd)
	if err != nil {
		return nil, 0, err
	}
	group.FlushIgnored()
	return group, uint64(group.Settle(t.absence.Limit, fallback)), nil //nolint:gosec // a count
}

// shared takes over a group that containers of a tenant share.
func (t *takeOver) shared(e *keeper.Entry) {
	defer e.Close()
	var st kept
	err := json.Unmarshal(e.State, &st)
	fd := e.Take(keeper.Group)
	if pool := t.guard.pool(st.Shared); err == nil && fd >= 0 && st.Shared != "" && pool != nil {
		var group *fanotify.Group
		var n uint64
		if group, n, err = t.group(fd, e.Fallback); err == nil {
			t.result.Settled += n
			t.result.Answered += e.Answered
			err = pool.shared.adopt(group)
		}
	} else if fd >= 0 { // its tenant is gone, and its members get groups of their own
		_ = unix.Close(fd)
	}
	if err != nil {
		t.guard.log.Error("a shared group cannot be taken over; its containers get others", "key", e.Key, "error", err)
	}
	if t.guard.keeper != nil {
		_ = t.guard.keeper.Forget(e.Key) // under its new key it is kept with its first member
	}
}

// adoptProcess takes a pidfd over, or opens one if there is none, of the process that
// started then. Its mount namespace proves nothing: it may have made itself another.
func adoptProcess(pidfd, pid int, started uint64) (*process, error) {
	p := &process{pid: pid}
	if pidfd >= 0 {
		p.file = os.NewFile(uintptr(pidfd), fmt.Sprintf("pidfd of %d", pid))
	} else {
		var err error
		if p, err = openProcess(pid); errors.Is(err, errExited) {
			return nil, errOver
		} else if err != nil {
			return nil, err
		}
		// The number can be another process's by now.
		if now, err := p.started(); err == nil && now != started {
			p.close()
			return nil, errOver
		}
	}
	if p.alive() != nil {
		p.close()
		return nil, errOver
	}
	return p, nil
}
