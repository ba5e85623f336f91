package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/keeper"
	"github.com/assay-project/assay/internal/pidfd"
	"github.com/assay-project/assay/internal/tenant"
)

// A Keeper holds what keeps containers guarded while this process is away. Its
// methods return an error, and have no effect, while there is no keeper: then
// [Guard.Keep] is called once there is one.
type Keeper interface {
	Keep(e *keeper.Entry) error
	Forget(key string) error
	// Lease holds a copy of a leased descriptor, until Unlease or until the marks are
	// gone after our end.
	Lease(key string, fd int) (serial uint64, err error)
	Unlease(serial uint64)
}

// kept is the state of an entry: of a container, or of the group that containers of a
// tenant share.
type kept struct {
	Shared    string              `json:"shared,omitempty"` // the tenant whose group it is
	Container *announce.Container `json:"container,omitempty"`
	Since     time.Time           `json:"since"`
	Started   uint64              `json:"started,omitempty"` // its process, in the kernel's ticks since boot
	Device    uint64              `json:"device,omitempty"`  // of the mount namespace
	Namespace uint64              `json:"namespace,omitempty"`
	Root      int                 `json:"root,omitempty"`   // mount id
	OnHost    string              `json:"onHost,omitempty"` // mount point at the announcement
	Sharing   bool                `json:"sharing,omitempty"`
	ClockSet  bool                `json:"clockSet,omitempty"` // since the announcement
}

// sharedKey begins the keys of shared groups. Those of containers begin with their id,
// which has no slash.
const sharedKey = "shared/"

// maxLabels bounds the labels that a successor is told, in bytes of JSON.
const maxLabels = 32 << 10

// fallback is what openers get while there is no agent.
func (p *policy) fallback() fanotify.Decision {
	if p.Mode == tenant.Audit {
		return fanotify.Allow // audit mode never denies
	}
	return action(p.OnAgentGone)
}

// Keep gives the keeper everything that is guarded: a new keeper, or one that is to
// know of another policy.
func (g *Guard) Keep() {
	for _, t := range g.tenants() {
		t.shared.keep()
	}
	for _, c := range g.guarded() {
		c.keep()
	}
}

// keep gives the keeper what a successor needs to guard the container. What fails is
// made up for when the keeper is back.
func (c *container) keep() {
	if c.guard.keeper == nil {
		return
	}
	c.placing.Lock()
	defer c.placing.Unlock()
	if c.ctx.Err() != nil {
		return // a dead container's entry would stay
	}
	e, err := c.entry()
	if err == nil {
		defer e.Close()
		err = c.guard.keeper.Keep(e)
	}
	if err != nil {
		c.guard.log.Warn("the container is not in the keeper's hands", "container", c.info.ID, "error", err)
	}
}

// entry describes the container for a successor. The caller holds c.placing, and
// closes the entry.
func (c *container) entry() (*keeper.Entry, error) {
	p := c.pool.Load().policy.Load()
	info := c.info
	if !brief(info.Labels) {
		info.Labels = nil // names in records, nothing else
	}
	if !brief(info.PodLabels) {
		info.PodLabels = c.guard.neededLabels(&info)
	}
	st := kept{
		Container: &info, Since: c.since, Device: c.mntns.Dev, Namespace: c.mntns.Ino,
		Root: c.root, OnHost: c.onHost, Sharing: c.sharing != nil,
	}
	if l := c.lineage.Load(); l != nil {
		st.ClockSet = !l.steady()
	}
	e := &keeper.Entry{Key: c.key, Grace: p.Grace, Fallback: p.fallback()}
	var err error
	if st.Started, err = c.proc.started(); err != nil {
		return nil, err
	}
	if e.State, err = json.Marshal(st); err != nil {
		return nil, fmt.Errorf("describe container: %w", err)
	}
	pidfd, err := c.proc.duplicate()
	if err != nil {
		return nil, err
	}
	e.Files = append(e.Files, keeper.File{Kind: keeper.Process, FD: pidfd})
	if c.sharing == nil {
		err = addGroup(e, keeper.Group, c.group)
	}
	if c.aside != nil {
		err = errors.Join(err, addGroup(e, keeper.Aside, c.aside.group))
	}
	if err != nil {
		e.Close()
	}
	return e, err
}

// brief reports whether labels are short enough for a successor.
func brief(labels map[string]string) bool {
	text, err := json.Marshal(labels)
	return err == nil && len(text) <= maxLabels
}

// neededLabels returns those of a pod's labels that the configuration asks for.
func (g *Guard) neededLabels(a *announce.Container) map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	needed := g.subject(a).PodLabels
	if needed == nil {
		needed = map[string]string{}
	}
	for _, key := range g.config.RecordLabels {
		if value, ok := a.PodLabels[key]; ok {
			needed[key] = value
		}
	}
	return needed
}

func addGroup(e *keeper.Entry, kind keeper.Kind, g *fanotify.Group) error {
	fd, err := g.Duplicate()
	if err == nil {
		e.Files = append(e.Files, keeper.File{Kind: kind, FD: fd})
	}
	return err
}

// forget takes the container out of the keeper's hands, who has its leased files open.
func (c *container) forget() {
	if c.guard.keeper != nil {
		// A keeper that is gone has forgotten.
		_ = c.guard.keeper.Forget(c.key)
	}
}

// keys names the entries that a successor needs to guard the container.
func (c *container) keys() []string {
	if c.sharing == nil {
		return []string{c.key}
	}
	return []string{c.key, c.sharing.name()}
}

// name is what the keeper calls the group.
func (s *sharedGroup) name() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.key
}

// idOf returns the id of the container that a key is of.
func idOf(key string) string {
	if at := strings.LastIndexByte(key, '@'); at >= 0 {
		return key[:at]
	}
	return key
}

// keep gives the keeper a group that has members.
func (s *sharedGroup) keep() {
	e, err := s.entry()
	if e != nil && err == nil {
		err = s.guard.keeper.Keep(e) // without s.mu, for which events would wait
	}
	if e != nil {
		e.Close()
	}
	if err != nil {
		s.guard.log.Warn("a shared group is not in the keeper's hands", "tenant", s.tenant, "error", err)
	}
}

// entry describes the group for a successor, nil if it has no members. The caller
// closes it.
func (s *sharedGroup) entry() (*keeper.Entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.guard.keeper == nil || len(s.members) == 0 {
		return nil, nil //nolint:nilnil // nothing to keep is not an error
	}
	state, err := json.Marshal(kept{Shared: s.tenant})
	if err != nil {
		return nil, fmt.Errorf("describe the group: %w", err)
	}
	p := s.members[0].pool.Load().policy.Load()
	e := &keeper.Entry{Key: s.key, Grace: p.Grace, Fallback: p.fallback(), State: state}
	return e, addGroup(e, keeper.Group, s.group)
}

// absent counts and records what was answered for a container without this agent.
func (c *container) absent(d fanotify.Decision, byKeeper, settled uint64) {
	n := byKeeper + settled
	if n == 0 {
		return
	}
	t := c.pool.Load()
	deny := d == fanotify.Deny
	t.counters.AddMany(deny, audit.ReasonAgentGone, n)
	c.counters.AddMany(deny, audit.ReasonAgentGone, n)
	c.guard.records.Append(audit.Record{
		Time: time.Now(), Tenant: t.name, Container: c.named(), Op: audit.OpAbsence,
		Decision: d.String(), Source: sourcePolicy, Reason: audit.ReasonAgentGone,
		Detail: fmt.Sprintf("%d opens were answered without an agent: %d by the keeper, %d that the last agent had in hand", n, byKeeper, settled),
	})
}

// duplicate returns another pidfd of the process, which the caller closes.
func (p *process) duplicate() (int, error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("pidfd of %d: %w", p.pid, err)
	}
	fd := -1
	if cerr := raw.Control(func(own uintptr) { fd, err = pidfd.Duplicate(int(own)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd of %d: %w", p.pid, err)
	}
	return fd, nil
}

// KeepAnew is Keep for a keeper that knows nothing of us: it has no copies of the
// leases under the kernel's marks. So these go, and come back when wished for.
func (g *Guard) KeepAnew() {
	for _, t := range g.tenants() {
		g.marks.flush(t)
	}
	g.Keep()
}
