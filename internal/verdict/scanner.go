package verdict

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/assay-project/assay/scanner"
)

// maxGenerations is how many generations of a scanner are told apart. Verdicts
// of those that are forgotten match nothing any more.
const maxGenerations = 16

// A Scanner is whose verdicts are kept: a scanner under its configured name,
// with one configuration of its driver. There is one for each pair in a cache,
// made by [Cache.Scanner].
type Scanner struct {
	name, config string
	current      atomic.Pointer[generation] // the last one asked for
	mu           sync.Mutex
	generations  []*generation // oldest first; guarded by mu
	lanes        lanes
}

// A generation is one state of one scanner's knowledge. Two are equal if and
// only if they are the same object.
type generation struct {
	scanner *Scanner
	name    scanner.Generation
}

// Name returns the scanner's configured name.
func (s *Scanner) Name() string { return s.name }

// Config returns the hash of the driver's configuration.
func (s *Scanner) Config() string { return s.config }

// generation returns the object for a name, or nil for the unknown generation.
// It takes a lock only when the name is not the one that was asked for last.
func (s *Scanner) generation(name scanner.Generation) *generation {
	if name == "" {
		return nil
	}
	if g := s.current.Load(); g != nil && g.name == name {
		return g
	}
	return s.intern(name)
}

func (s *Scanner) intern(name scanner.Generation) *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.generations, func(g *generation) bool { return g.name == name })
	if i < 0 {
		if len(s.generations) == maxGenerations {
			s.generations = slices.Delete(s.generations, 0, 1)
		}
		s.generations = append(s.generations, &generation{scanner: s, name: name})
		i = len(s.generations) - 1
	}
	s.current.Store(s.generations[i])
	return s.generations[i]
}

// scanners are all scanners of a cache.
type scanners struct {
	mu    sync.Mutex
	known map[[2]string]*Scanner // guarded by mu
}

func (s *scanners) get(name, config string, lanesEach int) *Scanner {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := [2]string{name, config}
	if known := s.known[id]; known != nil {
		return known
	}
	if s.known == nil {
		s.known = make(map[[2]string]*Scanner)
	}
	made := &Scanner{name: name, config: config, lanes: make(lanes, lanesEach)}
	s.known[id] = made
	return made
}

func (s *scanners) list() []*Scanner {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Scanner, 0, len(s.known))
	for _, one := range s.known {
		list = append(list, one)
	}
	return list
}
