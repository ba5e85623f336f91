package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// TestKernelAgentDies: openers wait through the grace time and then get the fallback,
// those that the dead agent had in hand and those that came later; the next agent
// ends that.
func TestKernelAgentDies(t *testing.T) {
	for _, fallback := range []string{"deny", "allow"} {
		t.Run(fallback, func(t *testing.T) {
			const grace = 2 * time.Second
			want := func(o *kerneltest.Opener) time.Time {
				t.Helper()
				if fallback == "allow" {
					return o.WantContent(t, "content")
				}
				return o.WantError(t, unix.EPERM)
			}
			r := newRig(t)
			o := kerneltest.NewOverlay(t, map[string]string{"read": "content", "unread": "content"})
			agent, _ := startAgent(t, r.socket)
			agent.do(t, "guard", "key", grace.String(), fallback, o.Merged)
			agent.do(t, "beat")
			agent.do(t, "read", "key")
			read := kerneltest.Begin(o.Path("read"))
			agent.do(t, "event")
			died := time.Now()
			agent.kill()
			unread := kerneltest.Begin(o.Path("unread"))
			for _, opener := range []*kerneltest.Opener{read, unread} {
				if waited := want(opener).Sub(died); waited < grace {
					t.Errorf("an opener had the fallback after %v, within the grace time", waited)
				}
			}
			want(kerneltest.Begin(o.Path("read")))
			r.awaitAnswering(t, "key")
			kerneltest.Await(t, "three answers are counted", func() bool { return r.entry("key").Answered == 3 })

			next, g := startAgent(t, r.socket)
			next.do(t, "beat")
			if len(g.Entries) != 1 || g.Entries[0].Answered != 3 || g.Absence.Limit != childLimit || g.Absence.Since.Before(died) {
				t.Fatalf("the next agent was told %+v", g)
			}
			if h := r.entry("key"); h.Answering || h.Answered != 0 {
				t.Errorf("with an agent the keeper says %+v", h)
			}
			opener := kerneltest.Begin(o.Path("read"))
			r.awaitPending(t, "key", 1)
			opener.WantWaits(t)
			next.do(t, "answer", "key")
			opener.WantContent(t, "content")
		})
	}
}

// TestKernelNextAgentInTime: an agent that comes within the grace time finds whoever
// waits, and nobody had the fallback.
func TestKernelNextAgentInTime(t *testing.T) {
	r := newRig(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	agent, _ := startAgent(t, r.socket)
	agent.do(t, "guard", "key", "1h", "deny", o.Merged)
	agent.kill()
	r.awaitAlone(t)
	opener := kerneltest.Begin(o.Path("file"))
	r.awaitPending(t, "key", 1)
	next, g := startAgent(t, r.socket)
	if len(g.Entries) != 1 || g.Entries[0].Answered != 0 {
		t.Fatalf("the next agent was told %+v", g)
	}
	opener.WantWaits(t)
	next.do(t, "answer", "key")
	opener.WantContent(t, "content")
}

// TestKernelNextAgentAmidFallbacks: an agent that comes while the fallback begins for
// many containers, which takes a while for each where the last agent could have had
// many descriptors, is not turned away for that.
func TestKernelNextAgentAmidFallbacks(t *testing.T) {
	const entries, manyDescriptors = 40, 1 << 18
	r := newRig(t)
	o := kerneltest.NewOverlay(t, nil)
	c := r.dial(t)
	if _, _, err := c.Hello(manyDescriptors); err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := c.Keep(newEntry(t, fmt.Sprint(i), o)); err != nil {
			t.Fatal(err)
		}
	}
	setGraces := func(grace time.Duration) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, h := range r.held {
			h.Grace = grace
		}
	}
	const grace = 2 * time.Second
	setGraces(grace)
	c.Close()
	c = r.dial(t)
	<-time.After(grace + 100*time.Millisecond) // it is the time of every fallback
	var got []Entry
	kerneltest.Await(t, "the keeper takes an agent", func() bool {
		var err error
		if _, got, err = c.Hello(testLimit); err != nil && !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		return err == nil // it may not have heard of the last one's end
	})
	setGraces(time.Hour) // the agent, which would be killed, is this process
	if err := c.Beat(); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].Close()
	}
	if len(got) != entries {
		t.Errorf("%d entries came, want %d", len(got), entries)
	}
	if st := r.status(); slices.ContainsFunc(st.Entries, func(h Held) bool { return h.Answering }) {
		t.Error("the fallback is answered although there is an agent")
	}
}

// TestKernelStuckAgent: an agent that is not heard of for the shortest grace time is
// killed, and what it had in hand gets the fallback. One that beats lives.
func TestKernelStuckAgent(t *testing.T) {
	const grace = time.Second
	for _, stuck := range []bool{true, false} {
		r := newRig(t)
		o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
		agent, _ := startAgent(t, r.socket)
		agent.do(t, "guard", "patient", "1h", "deny", kerneltest.NewOverlay(t, nil).Merged)
		agent.do(t, "guard", "key", grace.String(), "deny", o.Merged)
		if !stuck {
			agent.do(t, "beat")
			<-time.After(2 * grace)
			if st := r.status(); st.Agent != agent.cmd.Process.Pid {
				t.Errorf("an agent that beats was lost: %s", st.Why)
			}
			continue
		}
		agent.do(t, "read", "key")
		opener := kerneltest.Begin(o.Path("file"))
		agent.do(t, "event")
		agent.tell("stop")
		agent.wantKilled(t)
		opener.WantError(t, unix.EPERM)
		if r.entry("patient").Answering {
			t.Error("an entry with a long grace time is answered")
		}
	}
}

// TestKernelDisconnectedAgent: an agent that has lost its connection and lives could
// still answer: it is killed before anybody answers in its place.
func TestKernelDisconnectedAgent(t *testing.T) {
	r := newRig(t)
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	agent, _ := startAgent(t, r.socket)
	agent.do(t, "guard", "key", "1s", "deny", o.Merged)
	opener := kerneltest.Begin(o.Path("file"))
	agent.do(t, "hangup")
	agent.wantKilled(t)
	opener.WantError(t, unix.EPERM)
}

// TestKernelStoppedKeeper: a keeper that could not run for longer than the grace time,
// as on a machine that was suspended, listens before it kills.
func TestKernelStoppedKeeper(t *testing.T) {
	const grace = time.Second
	o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
	socket := t.TempDir() + "/keeper.sock"
	keeper := startChild(t)
	keeper.do(t, "serve", socket)
	for range 3 {
		agent, _ := startAgent(t, socket)
		agent.do(t, "guard", "key", grace.String(), "deny", o.Merged)
		agent.do(t, "beat")
		if err := keeper.cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		<-time.After(grace + grace/2)
		if err := keeper.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		agent.do(t, "forget", "key")
		agent.kill()
	}
}

// TestKernelSecondAgent: there is one agent at a time.
func TestKernelSecondAgent(t *testing.T) {
	r := newRig(t)
	agent, _ := startAgent(t, r.socket)
	agent.do(t, "guard", "key", "1h", "deny", kerneltest.NewOverlay(t, nil).Merged)
	c := r.dial(t)
	_, _, err := c.Hello(testLimit)
	wantRefused(t, "a second hello", err)
	wantRefused(t, "a request of somebody else's", c.Forget("key"))
	if st, err := c.Status(); err != nil || st.Agent != agent.cmd.Process.Pid || len(st.Entries) != 1 {
		t.Errorf("the status for somebody else: %+v, %v", st, err)
	}
	agent.kill()
	r.awaitAlone(t)
	if _, entries, err := c.Hello(testLimit); err != nil || len(entries) != 1 {
		t.Errorf("hello after the agent's end: %d entries, %v", len(entries), err)
	} else {
		entries[0].Close()
	}
}

// TestKernelRelease: the agent is killed, and every container goes on without a gate.
func TestKernelRelease(t *testing.T) {
	for _, alive := range []bool{true, false} {
		r := newRig(t)
		one, two := kerneltest.NewOverlay(t, map[string]string{"file": "content"}), kerneltest.NewOverlay(t, map[string]string{"file": "content"})
		agent, _ := startAgent(t, r.socket)
		agent.do(t, "guard", "one", "1h", "deny", one.Merged)
		agent.do(t, "guard", "two", "1h", "deny", two.Merged)
		agent.do(t, "read", "one")
		read := kerneltest.Begin(one.Path("file"))
		agent.do(t, "event")
		if !alive {
			agent.kill()
			r.awaitAlone(t)
		}
		unread := kerneltest.Begin(two.Path("file"))
		r.awaitPending(t, "two", 1)
		if n, err := r.dial(t).Release(); n != 2 || err != nil {
			t.Errorf("released %d entries, %v, want 2", n, err)
		}
		if alive {
			agent.wantKilled(t)
		}
		read.WantContent(t, "content")
		unread.WantContent(t, "content")
		kerneltest.Begin(one.Path("file")).WantContent(t, "content")
		r.awaitAlone(t)
		if st := r.status(); len(st.Entries) != 0 {
			t.Errorf("held after the release: %+v", st.Entries)
		}
	}
}

// TestKernelDeadContainer: without an agent, the keeper sees itself that a container
// has ended, and nothing of it is left, be its openers answered or not.
func TestKernelDeadContainer(t *testing.T) {
	for _, grace := range []time.Duration{time.Hour, time.Millisecond} {
		r := newRig(t)
		before := descriptors(t)
		container := exec.CommandContext(t.Context(), "sleep", "1000")
		if err := container.Start(); err != nil {
			t.Fatal(err)
		}
		o := kerneltest.NewOverlay(t, map[string]string{"file": "content"})
		e := &Entry{Key: "key", Grace: time.Hour, Files: []File{{Group, groupFD(t, o)}, {Process, pidfdOf(t, container.Process.Pid)}}}
		c, _, _ := r.hello(t)
		if err := c.Keep(e); err != nil {
			t.Fatal(err)
		}
		e.Close()
		r.setGrace("key", grace)
		c.Close()
		r.awaitAlone(t)
		if grace < time.Second {
			r.awaitAnswering(t, "key")
		}
		if err := container.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = container.Wait() // killed
		kerneltest.Await(t, "the entry is dropped", func() bool { return len(r.status().Entries) == 0 })
		kerneltest.Await(t, "its descriptors are closed", func() bool { return descriptors(t) <= before })
	}
}

// TestKernelUntilIdle: a keeper that the agent has started ends when it has nothing to
// do, and not before.
func TestKernelUntilIdle(t *testing.T) {
	r := newRig(t, func(o *Options) { o.UntilIdle = true })
	agent, _ := startAgent(t, r.socket)
	agent.do(t, "guard", "key", "1h", "deny", kerneltest.NewOverlay(t, nil).Merged)
	agent.kill()
	select {
	case <-r.ended:
		t.Fatal("the keeper has ended, and a container was left alone")
	case <-time.After(idlePatience + 2*reapEvery):
	}
	c, _, entries := r.hello(t)
	if len(entries) != 1 {
		t.Fatalf("%d entries, want 1", len(entries))
	}
	entries[0].Close()
	if err := c.Forget("key"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	kerneltest.Await(t, "the keeper has ended", func() bool {
		select {
		case <-r.ended:
			return true
		default:
			return false
		}
	})
	if _, err := os.Stat(r.socket); !os.IsNotExist(err) {
		t.Errorf("its socket is left: %v", err)
	}
}

// setGrace sets an entry's grace time behind the back of the agent: of this process,
// which must not be killed.
func (r *rig) setGrace(key string, grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[key].Grace = grace
}
