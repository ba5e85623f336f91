package guard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/fanotify"
)

// A refusal is an announcement that cannot be granted. It carries the body of
// the reply and its HTTP status.
type refusal struct {
	announce.Refusal
	status int
	cause  error
}

func (r *refusal) Error() string   { return r.Refusal.Error() }
func (r *refusal) Unwrap() []error { return []error{&r.Refusal, r.cause} }

// HTTPStatus returns the status that tells the caller whose fault it is.
func (r *refusal) HTTPStatus() int { return r.status }

func refuse(status int, cause error, remedy, format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	if cause != nil {
		message += ": " + cause.Error()
	}
	return &refusal{announce.Refusal{Message: message, Remedy: remedy}, status, cause}
}

// Announce guards a container. When it returns nil, every mark is in place, or the
// container is exempt, or it cannot be guarded and its tenant lets it start all the
// same; so it may run. Announcing the same container again returns the same.
func (g *Guard) Announce(ctx context.Context, a announce.Container) (announce.Guarded, error) {
	if g.opts.Complete != nil && !g.guards(&a) {
		if err := g.opts.Complete(ctx, &a); err != nil {
			return announce.Guarded{}, g.unknown(&a, err)
		}
	}
	if g.exempts(&a) {
		g.log.Info("container exempt", "container", a.ID, "namespace", a.Namespace)
		return announce.Guarded{ID: a.ID, Exempt: true}, nil
	}
	guarded, err := g.announce(ctx, a)
	if err != nil {
		return g.unguarded(&a, err)
	}
	return guarded, nil
}

// announce guards a container that is not exempt.
func (g *Guard) announce(ctx context.Context, a announce.Container) (announce.Guarded, error) {
	if err := a.Validate(); err != nil {
		return announce.Guarded{}, refuse(http.StatusBadRequest, err, "report this as a defect of whoever announced it", "the announcement is not usable")
	}
	known, err := g.reserve(ctx, a)
	if err != nil || known != nil {
		return reply(known), err
	}
	defer g.unreserve(a.ID)
	proc, err := openProcess(a.PID)
	if err != nil {
		return announce.Guarded{}, gone(a, err)
	}
	c, err := g.admit(a, proc)
	if err != nil {
		proc.close()
		return announce.Guarded{}, err
	}
	if err := g.guard(ctx, c); err != nil {
		c.dismantle()
		return announce.Guarded{}, err
	}
	return reply(c), nil
}

// reserve keeps a container's id while it is being announced, once whoever announces
// it at the same time is done. It returns the container if it is guarded already.
func (g *Guard) reserve(ctx context.Context, a announce.Container) (*container, error) {
	for {
		c, before, err := g.tryReserve(a)
		if before == nil {
			return c, err
		}
		select {
		case <-before:
		case <-ctx.Done():
			return nil, refuse(http.StatusConflict, ctx.Err(), "look at the agent's log for what the first one waits for",
				"container %s is being announced by somebody else at this moment", a.ID)
		}
	}
}

// tryReserve is reserve, but for the wait: before ends when another announcement does.
func (g *Guard) tryReserve(a announce.Container) (c *container, before <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping.Load() {
		return nil, nil, refuseStopping()
	}
	if first := g.joining[a.ID]; first != nil {
		return nil, first, nil
	}
	if c := g.containers[a.ID]; c != nil {
		if c.proc.alive() == nil {
			if c.info.PID == a.PID {
				return c, nil, nil
			}
			return nil, nil, refuse(http.StatusConflict, nil, "stop the other container first, or give this one another id",
				"container id %s belongs to a guarded container with pid %d", a.ID, c.info.PID)
		}
		// It has exited, but its release is not through yet.
		delete(g.containers, a.ID)
		g.follow.Go(c.dismantle)
	}
	g.joining[a.ID] = make(chan struct{})
	return nil, nil, nil
}

func (g *Guard) unreserve(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.joining[id])
	delete(g.joining, id)
}

// admit checks that the announced process is that of a container which nobody
// else has announced.
func (g *Guard) admit(a announce.Container, proc *process) (*container, error) {
	ns, err := mountNamespace(proc.proc(""))
	if err != nil {
		return nil, gone(a, err)
	}
	own, err := mountNamespace("/proc/self")
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, err, "", "the agent's own mount namespace cannot be told")
	}
	if sameNamespace(ns, own) {
		return nil, refuse(http.StatusBadRequest, nil, "announce the pid that the runtime gives to its hooks; a container without a mount namespace of its own cannot be guarded",
			"process %d is not in a container: it shares the agent's mount namespace", a.PID)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.foreign(a, ns); err != nil {
		return nil, err
	}
	c := &container{guard: g, info: a, since: time.Now(), proc: proc, mntns: ns}
	c.key = fmt.Sprintf("%s@%d", a.ID, c.since.UnixNano())
	c.ctx, c.cancel = context.WithCancelCause(context.Background()) // its life, not the announcement's
	g.assign(c)
	return c, nil
}

// guard puts the marks of a new container and begins to follow it.
func (g *Guard) guard(ctx context.Context, c *container) error {
	t := c.pool.Load()
	if err := c.join(); err != nil {
		return refuse(http.StatusServiceUnavailable, err, "run `assay doctor`", "no fanotify group for container %s", c.info.ID)
	}
	if err := c.place(t.policy.Load(), c.info.Rootfs); err != nil { //nolint:contextcheck // the container's life bounds it
		return refusePlace(c, err)
	}
	// All of the above was about this process if it still lives.
	if err := c.proc.alive(); err != nil {
		return gone(c.info, err)
	}
	if err := ctx.Err(); err != nil {
		return refuse(http.StatusRequestTimeout, err, "", "whoever announced container %s did not wait", c.info.ID)
	}
	if err := g.enter(c); err != nil {
		return err
	}
	g.renew(c) //nolint:contextcheck // a reload may have come in between; the container's life bounds it
	if c.sharing != nil {
		c.sharing.keep()
	}
	c.keep()
	g.anticipate(c)
	g.log.Info("container guarded", "container", c.info.ID, "tenant", t.name, "pid", c.info.PID, "marks", c.marks(), "by", c.info.Source)
	if c.info.Late {
		c.late()
	}
	return nil
}

// enter puts a container among the guarded ones and begins to follow it.
func (g *Guard) enter(c *container) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping.Load() {
		return refuseStopping()
	}
	// Two announcements of one process under two ids can both have come this far.
	if err := g.foreign(c.info, c.mntns); err != nil {
		return err
	}
	g.containers[c.info.ID] = c
	g.assign(c)
	g.follow.Go(func() { g.exited(c) })
	return nil
}

// foreign reports whether the mount namespace of an announced process is that of
// another container that still runs. The caller holds g.mu.
func (g *Guard) foreign(a announce.Container, ns unix.Stat_t) error {
	for _, other := range g.containers {
		if other.info.ID != a.ID && sameNamespace(ns, other.mntns) && other.proc.isIn(ns) {
			return refuse(http.StatusConflict, nil, "announce the pid that the runtime gives to its hooks",
				"process %d belongs to the guarded container %s", a.PID, other.info.ID)
		}
	}
	return nil
}

func refuseStopping() error {
	return refuse(http.StatusServiceUnavailable, nil, "start it again when the agent is back", announce.Stopping)
}

// refusePlace says why the marks could not be placed.
func refusePlace(c *container, err error) error {
	var unsuitable *rootfsError
	switch {
	case errors.As(err, &unsuitable):
		return refuse(http.StatusUnprocessableEntity, err, unsuitable.remedy, "container %s cannot be guarded", c.info.ID)
	case errors.Is(err, errExited), c.proc.alive() != nil:
		return gone(c.info, errExited)
	case errors.Is(err, unix.ENOENT):
		return refuse(http.StatusUnprocessableEntity, err, "check root.path of the bundle's config.json",
			"container %s has no root filesystem at %s", c.info.ID, c.info.Rootfs)
	}
	return refuse(http.StatusInternalServerError, err, "run `assay doctor`; exclude the mount by exclude.mounts if it cannot be marked",
		"container %s cannot be guarded", c.info.ID)
}

func gone(a announce.Container, err error) error {
	return refuse(http.StatusGone, err, "the container ended before it was guarded; look at its runtime's log",
		"process %d of container %s", a.PID, a.ID)
}

func sameNamespace(a, b unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// reply describes a guarded container to whoever announced it.
func reply(c *container) announce.Guarded {
	if c == nil {
		return announce.Guarded{}
	}
	return announce.Guarded{ID: c.info.ID, Tenant: c.pool.Load().name, Marks: c.marks()}
}

// join gives the container a group of its own, or its tenant's shared one where
// the kernel allows no more groups.
func (c *container) join() error {
	group, err := c.guard.newGroup()
	if errors.Is(err, fanotify.ErrGroupLimit) {
		c.guard.log.Warn("the limit of fanotify groups is reached: the container shares one with its tenant, which makes every answer dearer",
			"container", c.info.ID, "remedy", "raise fs.fanotify.max_user_groups")
		return c.pool.Load().shared.join(c)
	}
	if err != nil {
		return err
	}
	c.group = group
	return c.guard.readers.Add(group, c, c.unopened)
}

// errOtherRoot says that the path leads to another mount than the container's
// rootfs.
var errOtherRoot = errors.New("the root filesystem is another mount")

// renew places the marks of a guarded container again under another policy. Its
// root is at "/" once it has pivoted, and at the announced path before.
func (c *container) renew(p *policy) error {
	err := c.place(p, "/")
	if errors.Is(err, errOtherRoot) {
		err = c.place(p, c.info.Rootfs)
	}
	return err
}

// place puts a mark on the rootfs and on every other mount of the container that
// holds files. rootfs is where its root is in its mount namespace now: the
// announced path before the pivot, "/" after it.
func (c *container) place(p *policy, rootfs string) error {
	c.placing.Lock()
	defer c.placing.Unlock()
	if c.ctx.Err() != nil {
		return errExited
	}
	rootfd, err := c.proc.root(rootfs)
	if err != nil {
		return err
	}
	defer unix.Close(rootfd)
	l, top, err := c.layout(rootfd)
	if err != nil {
		return err
	}
	c.remember(top)
	if err := c.group.MarkSuperblock(rootfd, p.ops(), "the root filesystem"); err != nil {
		return err
	}
	done := []Mount{{Destination: "/", FSType: top.FSType, Kind: MarkSuperblock, Why: "the root filesystem", id: top.ID}}
	for _, m := range l.below(top) {
		placed, err := c.placeOne(l, rootfd, m, p)
		if err != nil {
			return err
		}
		done = append(done, placed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mounts, c.placed = done, p
	return nil
}

// layout reads the mount tables and finds the mount that rootfd lies on. Of
// several mounts stacked at the path it is the top one: the container's.
func (c *container) layout(rootfd int) (*layout, *mountinfo.Info, error) {
	l := &layout{id: c.info.ID}
	var err error
	if l.mounts, err = readMounts(c.proc.proc("mountinfo")); err != nil {
		return nil, nil, err
	}
	if l.host, err = readMounts("/proc/1/mountinfo"); err != nil {
		return nil, nil, err
	}
	id, err := mountID(rootfd)
	if err != nil {
		return nil, nil, err
	}
	top := l.find(id)
	if top == nil {
		return nil, nil, fmt.Errorf("mount %d of the root filesystem is not in the mount table of process %d", id, c.proc.pid)
	}
	if c.root != 0 && c.root != id {
		return nil, nil, fmt.Errorf("%w: mount %d, and was mount %d when the container was announced", errOtherRoot, id, c.root)
	}
	if root, err := isMountRoot(rootfd); err != nil {
		return nil, nil, err
	} else if !root {
		return nil, nil, &rootfsError{
			fmt.Sprintf("the root filesystem of container %s is a directory on %s, not a mount of its own", l.id, top.Mountpoint),
			"give each container its own overlay mount, or exempt the container's namespace",
		}
	}
	l.rootfs = top.Mountpoint
	if c.root == 0 { // when it was announced: the path itself may lead through symlinks
		c.onHost = top.Mountpoint
	}
	l.onHost = c.onHost
	if err := l.checkRootfs(top); err != nil {
		return nil, nil, err
	}
	c.root = id
	c.covers(id)
	return l, top, nil
}

// placeOne marks one mount below the rootfs.
func (c *container) placeOne(l *layout, rootfd int, m *mountinfo.Info, p *policy) (Mount, error) {
	kind, why := l.choose(m, &p.Tenant)
	placed := Mount{Destination: l.destination(m), FSType: m.FSType, Kind: kind, Why: why, id: m.ID}
	if kind == MarkNone {
		return placed, nil
	}
	fd, err := l.openMount(rootfd, m)
	if errors.Is(err, errHidden) {
		placed.Kind, placed.Why = MarkNone, err.Error()
		return placed, nil
	}
	if err != nil {
		return placed, err
	}
	defer unix.Close(fd)
	group, err := c.groupFor(m.FSType)
	if err != nil {
		return placed, err
	}
	c.covers(m.ID)
	if kind == MarkSuperblock {
		return placed, group.MarkSuperblock(fd, p.ops(), placed.Destination)
	}
	return placed, group.MarkMount(fd, p.ops(), placed.Destination)
}

// covers tells a shared group whose events those of a mount are.
func (c *container) covers(mountID int) {
	if c.sharing != nil {
		c.sharing.covers(mountID, c)
	}
}

// dismantle gives back everything that the container holds. When it returns,
// however often it is called, the container's storage can be unmounted as soon as
// its last scan ends.
func (c *container) dismantle() {
	c.once.Do(func() {
		c.cancel(errStopping)
		c.leave()
		c.guard.marks.release(c) // after the group's marks
		if l := c.lineage.Load(); l != nil {
			l.release()
		}
		c.proc.close()
	})
}

// leave gives up the groups. With the last reference to one the kernel drops its
// marks.
func (c *container) leave() {
	c.placing.Lock()
	defer c.placing.Unlock()
	if c.aside != nil {
		c.aside.close()
	}
	switch {
	case c.group == nil:
	case c.sharing != nil:
		c.sharing.leave(c)
	default:
		c.group.Close()
	}
	c.forget()
}

// marked lists the container's mounts with their marks.
func (c *container) marked() []Mount {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mounts
}

// suits reports whether the marks in place are those that p asks for, or more.
func (c *container) suits(p *policy) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.placed != nil && p.ops()&^c.placed.ops() == 0 && p.VolumeMarks == c.placed.VolumeMarks &&
		slices.Equal(p.ExcludeMounts, c.placed.ExcludeMounts)
}

// marks counts the marks in place.
func (c *container) marks() int {
	n := 0
	for _, m := range c.marked() {
		if m.Kind != MarkNone {
			n++
		}
	}
	return n
}
