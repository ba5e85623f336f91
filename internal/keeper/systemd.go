package keeper

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstPassed is the number of the first descriptor that systemd passes
	// (sd_listen_fds(3)).
	firstPassed = 3
	// stored begins the names of our descriptors in the store.
	stored = "assay-"
	// stateKind names the descriptor with an entry's description.
	stateKind Kind = "state"
	// slewing is the most that a clock is slewed (adjtimex(2): 500 ppm).
	slewing = 2000
)

// Systemd keeps entries in the descriptor store of the agent's own service
// (FileDescriptorStoreMax= of systemd.service(5), FDSTORE=1 of sd_notify(3)): systemd
// passes them to the next agent. Nobody acts meanwhile: openers wait for as long as
// that takes, and leases are refused, since nobody would end the marks above them.
type Systemd struct {
	conn *net.UnixConn
	log  *slog.Logger

	mu   sync.Mutex
	sent map[string]bool // descriptors that are in the store, by name
	got  []Entry         // until Hello
	past Absence
	own  int // our limit of descriptor numbers
}

// description is an entry in the store.
type description struct {
	entry
	Limit  int           `json:"limit"`
	Offset time.Duration `json:"offset"` // clockOffset
	At     time.Time     `json:"at"`
}

// OpenSystemd connects to systemd and takes what it has passed to this process. It
// fails for a process that no systemd has started.
func OpenSystemd(log *slog.Logger) (*Systemd, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, errors.New("systemd has not started this process: NOTIFY_SOCKET is not set (use backend: process)")
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	s := &Systemd{conn: conn, log: log, sent: make(map[string]bool)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receive()
	return s, nil
}

// receive takes the descriptors that were passed to this process. The caller holds s.mu.
func (s *Systemd) receive() {
	count := passed()
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // they are of no use to whoever we start
	}
	byEntry := make(map[string][]File)
	for i := range count {
		fd := firstPassed + i
		unix.CloseOnExec(fd)
		id, kind, ok := splitName(nameAt(names, i))
		if !ok {
			continue // somebody else's, such as a socket
		}
		s.sent[nameAt(names, i)] = true
		byEntry[id] = append(byEntry[id], File{Kind: kind, FD: fd})
	}
	for id, files := range byEntry {
		e := Entry{Files: files}
		if err := s.describe(&e); err != nil {
			s.log.Error("a container in systemd's descriptor store is lost", "error", errors.Join(err, s.removeAll(id)))
			e.Close()
			continue
		}
		s.got = append(s.got, e)
	}
}

// passed is how many descriptors were passed to this process.
func passed() int {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func nameAt(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return ""
}

// splitName takes the name of a stored descriptor apart.
func splitName(name string) (id string, kind Kind, ok bool) {
	rest, ours := strings.CutPrefix(name, stored)
	id, text, both := strings.Cut(rest, "-")
	return id, Kind(text), ours && both
}

// storedName names a descriptor in the store, where not every character may stand.
func storedName(key string, kind Kind) string {
	return nameOf(storedID(key), kind)
}

func nameOf(id string, kind Kind) string { return stored + id + "-" + string(kind) }

// storedID stands for a key in names.
func storedID(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:16])
}

// describe completes an entry from its description.
func (s *Systemd) describe(e *Entry) error {
	fd := e.Take(stateKind)
	if fd < 0 {
		return errors.New("no description")
	}
	f := os.NewFile(uintptr(fd), "description")
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxMessage))
	if err != nil {
		return fmt.Errorf("description: %w", err)
	}
	var d description
	if err := json.Unmarshal(text, &d); err != nil {
		return fmt.Errorf("description: %w", err)
	}
	if e.Fallback, err = fallbackNamed(d.Fallback); err != nil {
		return err
	}
	e.Key, e.Grace, e.State = d.Key, d.Grace, d.State
	s.past.Limit = max(s.past.Limit, d.Limit)
	moved := (clockOffset() - d.Offset).Abs() - time.Since(d.At).Abs()/slewing
	s.past.ClockMoved = max(s.past.ClockMoved, moved)
	s.past.Why = "systemd started this one in its place"
	return nil
}

// Hello returns what systemd has passed to us, as [Client.Hello] does.
func (s *Systemd) Hello(limit int) (Absence, []Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got, s.own = nil, limit
	return s.past, got, nil
}

// Keep puts an entry into the store, or replaces its description.
func (s *Systemd) Keep(e *Entry) error {
	w, _ := encodeEntry(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(description{entry: *w, Limit: s.own, Offset: clockOffset(), At: time.Now()})
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	fd, err := memfd(text)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := s.remove(storedName(e.Key, stateKind)); err != nil {
		return err
	}
	for _, f := range append([]File{{stateKind, fd}}, e.Files...) {
		if err := s.store(storedName(e.Key, f.Kind), f.FD); err != nil {
			return err
		}
	}
	return nil
}

// memfd returns a file in memory.
func memfd(text []byte) (int, error) {
	fd, err := unix.MemfdCreate("assay entry", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	if n, err := unix.Write(fd, text); err != nil || n < len(text) {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("write memfd: %d bytes of %d: %w", n, len(text), err)
	}
	return fd, nil
}

// store puts a descriptor into the store, unless it is there. The caller holds s.mu.
func (s *Systemd) store(name string, fd int) error {
	if s.sent[name] {
		return nil
	}
	// FDPOLL=0: a group is not to be dropped because it is readable, or a pidfd because
	// its process has ended.
	if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd); err != nil {
		return fmt.Errorf("store a descriptor with systemd: %w", err)
	}
	s.sent[name] = true
	return nil
}

// send sends a notice with a descriptor: package net does not on a connected datagram
// socket.
func (s *Systemd) send(text string, fd int) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(socket uintptr) (done bool) {
		sent = unix.Sendmsg(int(socket), []byte(text), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN) // the queue is full
	})
	return errors.Join(err, sent)
}

// remove takes a descriptor out of the store. The caller holds s.mu.
func (s *Systemd) remove(name string) error {
	if !s.sent[name] {
		return nil
	}
	delete(s.sent, name)
	if _, err := s.conn.Write([]byte("FDSTOREREMOVE=1\nFDNAME=" + name)); err != nil {
		return fmt.Errorf("remove a descriptor from systemd's store: %w", err)
	}
	return nil
}

// Forget takes an entry out of the store.
func (s *Systemd) Forget(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeAll(storedID(key))
}

// removeAll takes everything of an entry out of the store: a group that stayed there
// would let openers wait for ever. The caller holds s.mu.
func (s *Systemd) removeAll(id string) error {
	var errs []error
	for _, kind := range []Kind{stateKind, Group, Aside, Process} {
		errs = append(errs, s.remove(nameOf(id, kind)))
	}
	return errors.Join(errs...)
}

// Lease is refused.
func (s *Systemd) Lease(string, int) (uint64, error) {
	return 0, fmt.Errorf("%w: systemd would not end the mark before the lease", ErrRefused)
}

// Unlease has nothing to do.
func (s *Systemd) Unlease(uint64) {}

// Beat has nothing to do: systemd has a watchdog of its own.
func (s *Systemd) Beat() error { return nil }

// PID is systemd's.
func (s *Systemd) PID() int { return 1 }

// Kill has nothing to do.
func (s *Systemd) Kill() error { return nil }

// Close ends the connection; the store stays.
func (s *Systemd) Close() { _ = s.conn.Close() }
