package guard

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
)

// ended is a pid that was a process's.
func ended(t *testing.T) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestKernelAnnounceRefused(t *testing.T) {
	r := newRig(t, newContains(), config())
	other := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, other)
	c := kerneltest.NewContainer(t, map[string]string{"part/file": "", "vol/x": "", "plain/file": ""}, `
		mount -t tmpfs none vol
		mount --bind part part`)
	for name, tc := range map[string]struct {
		change func(*announce.Container)
		status int
		says   string
	}{
		"no id":                {func(a *announce.Container) { a.ID = "" }, 400, "id"},
		"pid 1":                {func(a *announce.Container) { a.PID = 1 }, 400, "pid 1"},
		"relative rootfs":      {func(a *announce.Container) { a.Rootfs = "merged" }, 400, "rootfs"},
		"pid gone":             {func(a *announce.Container) { a.PID = ended(t) }, 410, "exited"},
		"host's process":       {func(a *announce.Container) { a.PID = os.Getpid() }, 400, "mount namespace"},
		"another's pid":        {func(a *announce.Container) { a.PID, a.Rootfs = other.PID, other.Merged }, 409, "belongs to"},
		"another's id":         {func(a *announce.Container) { a.ID = announcement(other).ID }, 409, "id"},
		"no rootfs":            {func(a *announce.Container) { a.Rootfs += "/missing" }, 422, "no root filesystem"},
		"rootfs is a file":     {func(a *announce.Container) { a.Rootfs += "/part/file" }, 0, ""},
		"rootfs not overlay":   {func(a *announce.Container) { a.Rootfs += "/vol" }, 422, "not an overlay"},
		"part of an overlay":   {func(a *announce.Container) { a.Rootfs += "/part" }, 422, "part"},
		"directory in overlay": {func(a *announce.Container) { a.Rootfs += "/plain" }, 422, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.announce(t, announcement(c, tc.change))
			if err == nil || tc.status != 0 && statusOf(err) != tc.status || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("status %d, %v; want %d and %q", statusOf(err), err, tc.status, tc.says)
			}
			var refused *announce.Refusal
			if !errors.As(err, &refused) || refused.Remedy == "" {
				t.Errorf("no remedy: %v", err)
			}
			if n := len(r.Containers()); n != 1 {
				t.Errorf("%d containers are guarded", n)
			}
		})
	}
	// None of them left anything that is in the way of the right announcement.
	r.announced(t, c)
}

func TestKernelAnnounceExempt(t *testing.T) {
	cfg := config()
	cfg.Exempt = []tenant.Match{{Namespaces: []string{"system"}}}
	r := newRig(t, newContains(), cfg)
	c := kerneltest.NewContainer(t, samples(), "")
	if g := r.announced(t, c, inNamespace("system")); !g.Exempt || g.Marks != 0 {
		t.Errorf("the reply is %+v", g)
	}
	open(t, c.Path("bad")).wantContent(t, needle)
}

// TestKernelAnnounceStacked: of two mounts stacked at the rootfs the top one is
// the container's.
func TestKernelAnnounceStacked(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), `mount --bind "$0" "$0"`)
	r.announced(t, c)
	open(t, c.Path("bad")).wantDenied(t)
	c.Pivot(t)
	open(t, c.Root()+"/bad").wantDenied(t)
	open(t, c.Root()+"/good").wantContent(t, "content")
}

// TestKernelAnnounceTwice: two hooks of one container announce it, one after the
// other; the second gets the same reply, at once.
func TestKernelAnnounceTwice(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	first := r.announced(t, c)
	if second := r.announced(t, c); second != first {
		t.Errorf("the second reply is %+v, the first was %+v", second, first)
	}
}

// TestKernelAnnounceAtOnce: whoever announces a container that is being announced waits
// for that, as long as he likes, and gets the same reply.
func TestKernelAnnounceAtOnce(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	entered, proceed := blockGroups(t, r)
	replies := make(chan announce.Guarded, 2)
	announceIt := func() {
		g, err := r.Announce(context.Background(), announcement(c))
		if err != nil {
			t.Error(err)
		}
		replies <- g
	}
	go announceIt()
	receive(t, "the first announcement", entered)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Announce(impatient, announcement(c)); statusOf(err) != 409 {
		t.Errorf("the same id at the same time, without patience: %v", err)
	}
	go announceIt()
	proceed()
	first, second := receive(t, "a reply", replies), receive(t, "the other reply", replies)
	if first != second || first.Marks == 0 {
		t.Errorf("the replies are %+v and %+v", first, second)
	}
}

// TestKernelAnnounceTwoIDs: the second of two ids for one process is refused,
// also if they come at the same time.
func TestKernelAnnounceTwoIDs(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	entered, proceed := blockGroups(t, r)
	results := make(chan error, 2)
	for _, id := range []string{"one", "two"} {
		go func() {
			_, err := r.Announce(context.Background(), announcement(c, func(a *announce.Container) { a.ID = id }))
			results <- err
		}()
	}
	receive(t, "an announcement", entered)
	// The second one is refused at once, or comes as far as the first.
	var errs []error
	select {
	case <-entered:
	case err := <-results:
		errs = append(errs, err)
	case <-time.After(patience):
		t.Fatal("the second announcement hangs")
	}
	proceed()
	for len(errs) < 2 {
		errs = append(errs, receive(t, "a reply", results))
	}
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("two ids for one process: %v and %v", errs[0], errs[1])
	}
}

// blockGroups makes announcements wait where they create their group, after they
// were let in.
func blockGroups(t *testing.T, r *rig) (entered chan struct{}, proceed func()) {
	t.Helper()
	entered = make(chan struct{}, 16)
	over, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	create := r.newGroup
	r.newGroup = func() (*fanotify.Group, error) {
		entered <- struct{}{}
		<-over.Done()
		return create()
	}
	return entered, end
}

// TestKernelAnnounceWhileClosing: an announcement that was let in before Close
// must not become a container that nobody guards or releases.
func TestKernelAnnounceWhileClosing(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	entered, proceed := blockGroups(t, r)
	result := make(chan error, 1)
	go func() {
		_, err := r.Announce(context.Background(), announcement(c))
		result <- err
	}()
	receive(t, "the announcement", entered)
	r.Close(t.Context())
	proceed()
	if err := receive(t, "the reply", result); statusOf(err) != 503 || len(r.Containers()) != 0 {
		t.Errorf("a container was guarded after Close: %v, %+v", err, r.Containers())
	}
}

// TestKernelAnnounceGone: the process ends while its marks are placed.
func TestKernelAnnounceGone(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	entered, proceed := blockGroups(t, r)
	result := make(chan error, 1)
	go func() {
		_, err := r.Announce(context.Background(), announcement(c))
		result <- err
	}()
	receive(t, "the announcement", entered)
	c.Kill()
	proceed()
	if err := receive(t, "the reply", result); statusOf(err) != 410 || len(r.Containers()) != 0 {
		t.Errorf("announced a process that ended: %v", err)
	}
	open(t, c.Path("bad")).wantContent(t, needle)
}

// TestKernelAnnounceAfterExit: a container's namespace number is given to the
// next one before its exit was noticed.
func TestKernelAnnounceAfterExit(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	ns, err := mountNamespace("/proc/" + filepath.Base(filepath.Dir(c.Root())))
	if err != nil {
		t.Fatal(err)
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "infinity")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	proc, err := openProcess(sleeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.close()
	_ = sleeper.Process.Kill()
	_ = sleeper.Wait()
	ghost := &container{guard: r.Guard, info: announce.Container{ID: "ghost", PID: sleeper.Process.Pid}, proc: proc, mntns: ns}
	ghost.pool.Store(r.pools["default"])
	r.mu.Lock()
	r.containers["ghost"] = ghost
	r.mu.Unlock()
	_, err = r.announce(t, announcement(c))
	r.mu.Lock()
	delete(r.containers, "ghost")
	r.mu.Unlock()
	if err != nil {
		t.Errorf("refused for the sake of a container that has ended: %v", err)
	}
}

// TestKernelAnnounceSameIDAgain: the id of a container that has ended is free.
func TestKernelAnnounceSameIDAgain(t *testing.T) {
	r := newRig(t, newContains(), config())
	named := func(a *announce.Container) { a.ID = "again" }
	for range 3 {
		c := kerneltest.NewContainer(t, samples(), "")
		r.announced(t, c, named)
		open(t, c.Path("bad")).wantDenied(t)
		c.Kill()
	}
	eventually(t, "all are released", func() bool { return len(r.Containers()) == 0 })
}

// TestKernelAnnounceGivenUp: whoever announced hung up, so nobody starts it.
func TestKernelAnnounceGivenUp(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Announce(ctx, announcement(c)); statusOf(err) != 408 || len(r.Containers()) != 0 {
		t.Errorf("announced by somebody who did not wait: %v", err)
	}
	if err := unix.Kill(c.PID, 0); err != nil {
		t.Fatal(err)
	}
	open(t, c.Path("bad")).wantContent(t, needle)
}
