package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A store plays systemd's descriptor store (FileDescriptorStoreMax=): it keeps the
// descriptors that an agent sends (sd_notify(3)) and passes copies of all of them to
// the next one (sd_listen_fds(3)).
type store struct {
	mu    sync.Mutex
	files []storedFile
	conn  *net.UnixConn // where the agent at work sends to
	taken chan struct{} // all that was sent before has been taken
}

type storedFile struct {
	name string
	file *os.File
}

// takenNotice is what a store sends to itself, behind what an agent has sent.
const takenNotice = "ASSAY_TEST_TAKEN=1"

// StartStoredAgent is StartAgent for a service with a descriptor store.
func (s *Suite) StartStoredAgent(tb testing.TB, config string) *Agent {
	tb.Helper()
	a := s.NewAgent(tb, config)
	a.store = &store{taken: make(chan struct{})}
	tb.Cleanup(a.store.close)
	a.Begin(tb)
	return a
}

// pass makes cmd a process that systemd starts. Its environment names the process that
// the descriptors are for.
func (s *store) pass(tb testing.TB, cmd *exec.Cmd) {
	tb.Helper()
	s.awaitTaken(tb)
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, f := range s.files {
		names = append(names, f.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.file)
	}
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
}

// awaitTaken returns when everything that the last agent has sent is in the store.
func (s *store) awaitTaken(tb testing.TB) {
	tb.Helper()
	if s.conn == nil {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.conn.LocalAddr().String(), Net: "unixgram"})
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(takenNotice)); err != nil {
		tb.Fatal(err)
	}
	<-s.taken
}

// follow takes what is sent until conn is closed.
func (s *store) follow(conn *net.UnixConn) {
	s.conn = conn
	go func() {
		for {
			lines, err := s.receive(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) { // that of becoming ready
				err = conn.SetReadDeadline(time.Time{})
			}
			if err != nil {
				return
			}
			if slices.Contains(lines, takenNotice) {
				s.taken <- struct{}{}
			}
		}
	}()
}

// receive returns the lines of one notice, and does what they say of the store.
func (s *store) receive(conn *net.UnixConn) ([]string, error) {
	text, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
	n, rn, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(text[:n]), "\n")
	s.mu.Lock()
	defer s.mu.Unlock()
	name := ""
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = value
		}
	}
	if slices.Contains(lines, "FDSTOREREMOVE=1") {
		s.drop(func(f storedFile) bool { return f.name == name })
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			s.files = append(s.files, storedFile{name, os.NewFile(uintptr(fd), name)})
		}
	}
	return lines, nil
}

// drop closes what is meant. The caller holds s.mu.
func (s *store) drop(meant func(storedFile) bool) {
	s.files = slices.DeleteFunc(s.files, func(f storedFile) bool {
		if !meant(f) {
			return false
		}
		_ = f.file.Close()
		return true
	})
}

func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(func(storedFile) bool { return true })
}

// Stored returns the names of the descriptors in the agent's store.
func (a *Agent) Stored(tb testing.TB) []string {
	tb.Helper()
	a.store.awaitTaken(tb)
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	var names []string
	for _, f := range a.store.files {
		names = append(names, f.name)
	}
	return names
}
