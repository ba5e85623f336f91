package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// protocol is the version of the messages. A keeper outlives agents: a change that an
// older keeper would misunderstand needs another number.
const protocol = 1

const (
	maxMessage = 64 << 10 // bytes
	maxFiles   = 8        // descriptors with a message
)

// The requests. Each gets one reply; hello gets as many entries as its reply says
// after it.
const (
	opHello   = "hello"   // from now on the sender is the agent
	opKeep    = "keep"    // hold this entry; replaces one with the same key
	opForget  = "forget"  // the entry is over
	opLease   = "lease"   // hold a copy of this leased descriptor for the entry
	opBeat    = "beat"    // the agent answers events
	opStatus  = "status"  // anybody of root's: what is held?
	opRelease = "release" // anybody of root's: give entries up; the agent is killed first
)

// A message is a request or a reply: one packet, with descriptors beside it.
type message struct {
	Op      string   `json:"op,omitempty"`
	Version int      `json:"version,omitempty"`
	Error   string   `json:"error,omitempty"`
	Entry   *entry   `json:"entry,omitempty"`
	Key     string   `json:"key,omitempty"`
	Serial  uint64   `json:"serial,omitempty"`  // of a lease
	Unlease []uint64 `json:"unlease,omitempty"` // leases that are over
	Limit   int      `json:"limit,omitempty"`   // the agent's descriptor numbers are below it
	Entries int      `json:"entries,omitempty"` // that follow, or were released
	Absence *absence `json:"absence,omitempty"` // with the reply to hello
	Status  *Status  `json:"status,omitempty"`  // with the reply to status
	files   []int    // beside the message
}

// entry is an [Entry] on the wire; its descriptors are beside the message.
type entry struct {
	Key      string          `json:"key"`
	Grace    time.Duration   `json:"grace"`
	Fallback string          `json:"fallback"`
	State    json.RawMessage `json:"state,omitempty"`
	Kinds    []Kind          `json:"kinds,omitempty"`
	Answered uint64          `json:"answered,omitempty"`
	Leases   int             `json:"leases,omitempty"`  // with the reply to status, as the next
	Pending  int             `json:"pending,omitempty"` // events that nobody has read
	Answers  bool            `json:"answers,omitempty"` // by the fallback
}

// absence is an [Absence] on the wire.
type absence struct {
	Since time.Time     `json:"since"`
	Why   string        `json:"why"`
	Limit int           `json:"limit"`
	Moved time.Duration `json:"moved"`
}

func encodeEntry(e *Entry) (*entry, []int) {
	w := &entry{Key: e.Key, Grace: e.Grace, Fallback: e.Fallback.String(), State: e.State, Answered: e.Answered}
	var fds []int
	for _, f := range e.Files {
		w.Kinds = append(w.Kinds, f.Kind)
		fds = append(fds, f.FD)
	}
	return w, fds
}

// decodeEntry takes the message's descriptors over.
func (m *message) decodeEntry() (Entry, error) {
	w := m.Entry
	if w == nil || w.Key == "" {
		return Entry{}, errors.New("message without an entry")
	}
	if len(w.Kinds) != len(m.files) {
		return Entry{}, fmt.Errorf("entry %s: %d descriptors arrived of %d (out of descriptors?)", w.Key, len(m.files), len(w.Kinds))
	}
	fallback, err := fallbackNamed(w.Fallback)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s: %w", w.Key, err)
	}
	e := Entry{Key: w.Key, Grace: w.Grace, Fallback: fallback, State: w.State, Answered: w.Answered}
	for i, kind := range w.Kinds {
		e.Files = append(e.Files, File{Kind: kind, FD: m.files[i]})
	}
	m.files = nil
	return e, nil
}

// close closes the descriptors that came with a message and that nobody took.
func (m *message) close() {
	for _, fd := range m.files {
		_ = unix.Close(fd)
	}
	m.files = nil
}

// send writes one message with its descriptors, which stay the caller's.
func send(c *net.UnixConn, m *message, files []int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Op, err)
	}
	if len(text) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(text))
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	if _, _, err := c.WriteMsgUnix(text, rights, nil); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// receive reads one message. The caller closes it.
func receive(c *net.UnixConn) (*message, error) {
	text := make([]byte, maxMessage+1)
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, rn, flags, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	m := &message{}
	if m.files, err = parseRights(rights[:rn]); err != nil {
		return nil, err
	}
	switch {
	case n == 0:
		err = io.EOF
	case flags&unix.MSG_TRUNC != 0 || n > maxMessage:
		err = errors.New("message is too long")
	default:
		err = json.Unmarshal(text[:n], m)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		m.close() // without all of them none is of use: the request will be refused
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("receive: %w", err)
	}
	return m, nil
}

// parseRights returns the descriptors of a control message, which are ours.
func parseRights(control []byte) ([]int, error) {
	if len(control) == 0 {
		return nil, nil
	}
	list, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for i := range list {
		// Another kind of control message has none.
		if some, err := unix.ParseUnixRights(&list[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds, nil
}
