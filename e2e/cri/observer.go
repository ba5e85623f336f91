package cri

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// An Observer sees every open and exec in the node's containers that the kernel has let
// through, and keeps those of bad files. It takes nobody's word for it, neither the
// agent's nor the container's:
//
//   - It is a fanotify group of this process (FAN_CLASS_NOTIF), with marks on the same
//     superblocks and mounts. Notifications of FAN_OPEN and FAN_OPEN_EXEC are raised by
//     the kernel after a successful open (fsnotify_open in vfs_open, security checks and
//     permission events are before it), so that whatever the agent has denied is not
//     among them, and whatever it has let through is, however the program goes on to
//     read: by read, mmap or exec. FAN_ACCESS would miss the last two.
//   - Marks on the directories of the layers would see nothing: overlayfs opens the files
//     behind its own with FMODE_NONOTIFY.
//   - The marks are placed by a plugin of the test's own, the last one at StartContainer,
//     when the container's first process exists and waits before its exec. So no
//     instruction of the container is before them, and the agent's plugin may be there
//     or not.
//   - What is bad is judged by the file's bytes, read through the descriptor that the
//     event brings, which asks nobody.
//
// It cannot tell an open for writing: a bad file that is made while it looks on is
// among those let through, though it was empty then.
//
// An event's descriptor is open for a moment, and keeps a file system busy for as long:
// tests of removal do without an observer.
type Observer struct {
	file   *os.File // of the group
	hashes map[string]bool
	bell   string        // a file of this process: its open is behind all that were before it
	rung   chan struct{} // for each event of the bell

	mu      sync.Mutex
	seen    int // opens of anything
	through []Opened
	errs    []error
}

// Opened is an open that the kernel has let through.
type Opened struct {
	Path string // in the opener's view
	PID  int
	Exec bool
	At   time.Time // when it was read from the group
}

// Observe starts an observer for every container that the node starts from now on, and
// for those that tb gives it. It ends with tb.
func (n *Node) Observe(tb testing.TB) *Observer {
	tb.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK)
	if err != nil {
		tb.Fatalf("a fanotify group for the observer: %v", err)
	}
	o := &Observer{
		file: os.NewFile(uintptr(fd), "observer"), hashes: listed(tb, n.suite.Image(tb).Hashes),
		bell: filepath.Join(n.suite.HostDirectory(tb, map[string][]byte{"bell": nil}), "bell"), rung: make(chan struct{}, 1),
	}
	if err := o.mark(unix.FAN_MARK_INODE, o.bell); err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.read()
	}()
	tb.Cleanup(func() {
		_ = o.file.Close() // ends read
		<-done
	})
	n.Plug(tb, "99", "observer", Hooks{Start: func(_ *api.PodSandbox, c *api.Container) error {
		pid, err := n.firstProcess(c.GetId())
		if err != nil {
			return err
		}
		return o.Mark(pid)
	}})
	return o
}

// firstProcess returns the pid of a container's first process by the shim's account. The
// event's own is 0 if containerd waited for the shim's answer for longer than two seconds, as
// on a busy machine (timeouts, io.containerd.timeout.task.state).
func (n *Node) firstProcess(id string) (int, error) {
	text, err := os.ReadFile(filepath.Join(n.dir, "state/io.containerd.runtime.v2.task/k8s.io", id, "init.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

// listed returns the hashes of a list's files.
func listed(tb testing.TB, list string) map[string]bool {
	tb.Helper()
	text, err := os.ReadFile(list)
	if err != nil {
		tb.Fatal(err)
	}
	hashes := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		hash, _, _ := strings.Cut(line, ":")
		hashes[hash] = true
	}
	return hashes
}

// Mark makes the observer see the container whose first process is pid: its root file
// system, whoever opens something of it, and each of its volumes.
func (o *Observer) Mark(pid int) error {
	root := fmt.Sprintf("/proc/%d/root", pid)
	if err := o.mark(unix.FAN_MARK_FILESYSTEM, root); err != nil {
		return err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		_, after, _ := strings.Cut(line, " - ")
		typ, _, _ := strings.Cut(after, " ")
		if len(f) < 5 || f[4] == "/" || strings.HasPrefix(f[4], "/proc") || strings.HasPrefix(f[4], "/sys") || typ == "devpts" || typ == "mqueue" {
			continue
		}
		errs = append(errs, o.mark(unix.FAN_MARK_MOUNT, filepath.Join(root, f[4])))
	}
	return errors.Join(errs...)
}

func (o *Observer) mark(kind uint, path string) error {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	var markErr error
	err = raw.Control(func(fd uintptr) {
		markErr = unix.FanotifyMark(int(fd), unix.FAN_MARK_ADD|kind, unix.FAN_OPEN|unix.FAN_OPEN_EXEC, unix.AT_FDCWD, path)
	})
	if err = errors.Join(err, markErr); err != nil {
		return fmt.Errorf("the observer cannot mark %s: %w", path, err)
	}
	return nil
}

// read reads events until the group is closed.
func (o *Observer) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := o.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			o.fail(fmt.Errorf("read events: %w", err))
			return
		}
		for event := buf[:n]; len(event) >= metadataSize; event = event[binary.NativeEndian.Uint32(event):] {
			o.take(event)
		}
	}
}

// metadataSize is that of struct fanotify_event_metadata.
const metadataSize = 24

// take judges one event (fanotify(7): length, version, reserved, metadata length, mask,
// descriptor, process).
func (o *Observer) take(event []byte) {
	mask := binary.NativeEndian.Uint64(event[8:])
	fd, pid := int32(binary.NativeEndian.Uint32(event[16:])), int32(binary.NativeEndian.Uint32(event[20:])) //nolint:gosec // they are signed
	if mask&unix.FAN_Q_OVERFLOW != 0 || fd < 0 {
		o.fail(fmt.Errorf("the kernel gave up an event (mask %#x, descriptor %d)", mask, fd))
		return
	}
	file := os.NewFile(uintptr(fd), "opened")
	defer file.Close()
	path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) // for people, but for the bell's
	if path == o.bell {
		o.rung <- struct{}{}
		return
	}
	bad, err := o.bad(file)
	if err != nil {
		o.fail(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen++
	if bad {
		o.through = append(o.through, Opened{Path: path, PID: int(pid), Exec: mask&unix.FAN_OPEN_EXEC != 0, At: time.Now()})
	}
}

// bad reports whether a file has bad content: the EICAR test file, or what the test
// image's list names.
func (o *Observer) bad(file *os.File) (bool, error) {
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	content, err := io.ReadAll(io.NewSectionReader(file, 0, 16<<20))
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(content)
	return bytes.Contains(content, harness.EICAR()) || o.hashes[hex.EncodeToString(sum[:])], nil
}

func (o *Observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.errs = append(o.errs, err)
}

// Through returns the opens of bad files that were let through so far. An observer that
// may have missed some, or has seen nothing at all, fails tb.
func (o *Observer) Through(tb testing.TB) []Opened {
	tb.Helper()
	o.ring(tb)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := errors.Join(o.errs...); err != nil {
		tb.Errorf("the observer may have missed something: %v", err)
	}
	if o.seen == 0 {
		tb.Error("the observer has seen nothing: is it there?")
	}
	return o.through
}

// ring waits until every event that is in the group has been judged.
func (o *Observer) ring(tb testing.TB) {
	tb.Helper()
	file, err := os.Open(o.bell)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	select {
	case <-o.rung:
	case <-time.After(patience):
		tb.Fatal("the observer does not read its events")
	}
}
