package guard

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
)

// A sharedGroup is one fanotify group for several containers of a tenant, used
// only where the kernel allows no more groups. Every answer then wakes the
// openers of all of them, and an event must first be told to its container.
type sharedGroup struct {
	guard  *Guard
	tenant string

	mu      sync.RWMutex
	group   *fanotify.Group
	key     string // names the group for the keeper
	adopted bool   // from an agent that is gone
	members []*container
	byMount map[int]*container // by the id of a marked mount
	retired bool               // to be closed with its last member
}

// join makes c a member. If the limit leaves not even one group for the tenant,
// it fails.
func (s *sharedGroup) join(c *container) error {
	if err := s.reserve(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = append(s.members, c)
	c.group, c.sharing = s.group, s
	return nil
}

// reserve creates the group unless it exists: with the tenant, ahead of need,
// because once the limit is reached it is too late.
func (s *sharedGroup) reserve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open()
}

// open is reserve for callers that hold s.mu.
func (s *sharedGroup) open() error {
	if s.group != nil {
		return nil
	}
	group, err := s.guard.newGroup()
	if err != nil {
		return err
	}
	if err := s.guard.readers.Add(group, s, s.unopened); err != nil {
		group.Close()
		return fmt.Errorf("serve the shared group: %w", err)
	}
	s.have(group)
	return nil
}

// reserved reports whether the group exists.
func (s *sharedGroup) reserved() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.group != nil
}

// have makes group the one of the tenant. The caller holds s.mu.
func (s *sharedGroup) have(group *fanotify.Group) {
	s.group, s.byMount = group, make(map[int]*container)
	s.key = fmt.Sprintf("%s%s/%d", sharedKey, s.tenant, time.Now().UnixNano())
}

// adopt puts the group of an agent that is gone in place of the reserve, which has no
// members yet. It takes the group over.
func (s *sharedGroup) adopt(group *fanotify.Group) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.guard.readers.Add(group, s, s.unopened); err != nil {
		group.Close()
		return fmt.Errorf("serve the shared group: %w", err)
	}
	if s.group != nil {
		s.group.Close()
	}
	s.have(group)
	s.adopted = true
	return nil
}

// isAdopted reports whether the group is that of an agent that is gone.
func (s *sharedGroup) isAdopted() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.adopted
}

// tidy replaces a group that was adopted and whose containers have all ended.
func (s *sharedGroup) tidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adopted && len(s.members) == 0 {
		s.renew()
	}
}

// leave ends c's membership. Its marks vanish with its mounts, or with the last
// member; until then events of them go to whoever is left.
func (s *sharedGroup) leave(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = slices.DeleteFunc(slices.Clone(s.members), func(m *container) bool { return m == c })
	maps.DeleteFunc(s.byMount, func(_ int, owner *container) bool { return owner == c })
	if len(s.members) == 0 {
		s.renew()
	}
}

// close gives up the group as soon as no member is left.
func (s *sharedGroup) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	if len(s.members) == 0 {
		s.renew()
	}
}

// renew replaces a group without members by one without marks, or by none once
// it is retired. The caller holds s.mu.
func (s *sharedGroup) renew() {
	if s.group != nil {
		s.group.Close()
		s.group, s.adopted = nil, false
		if s.guard.keeper != nil {
			_ = s.guard.keeper.Forget(s.key) // a keeper that is gone has forgotten
		}
	}
	if s.retired {
		return
	}
	if err := s.open(); err != nil {
		s.guard.log.Warn("no spare fanotify group for a tenant: while the limit is reached, its containers are refused",
			"error", err, "remedy", "raise fs.fanotify.max_user_groups")
	}
}

// covers notes that events on the mount id belong to c.
func (s *sharedGroup) covers(id int, c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byMount[id] = c
}

// HandleEvent hands the event to its container.
func (s *sharedGroup) HandleEvent(ev *fanotify.Event) {
	c, certain := s.owner(ev.Descriptor())
	switch {
	case c == nil:
		// The last member has left and its group is being closed, which allows.
		ev.Answer(fanotify.Allow)
	case certain:
		c.HandleEvent(ev)
	default:
		t := c.pool.Load()
		c.refuse(newTask(c, t, t.policy.Load(), ev), ev, outcome{fanotify.Deny, audit.ReasonError},
			"containers of several tenants share a fanotify group since a reload, and the event is of a mount that none of them had")
	}
}

// owner finds the container of an event. One opened through a mount that a
// container made later could be of any member: that is certain enough while all
// have the same tenant, since only the record can then name the wrong container.
func (s *sharedGroup) owner(fd int) (c *container, certain bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if id, err := mountID(fd); err == nil {
		if c := s.byMount[id]; c != nil {
			return c, true
		}
	}
	if len(s.members) == 0 {
		return nil, false
	}
	first := s.members[0]
	return first, !slices.ContainsFunc(s.members, func(m *container) bool { return m.pool.Load() != first.pool.Load() })
}

func (s *sharedGroup) unopened(tid int, errno error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.members) > 0 {
		s.members[0].unopened(tid, errno)
	}
}
