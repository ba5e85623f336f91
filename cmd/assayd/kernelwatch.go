package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/tenant"
)

const (
	kernelLogFile = "/dev/kmsg"
	watchdogKnob  = "/proc/sys/fs/fanotify/watchdog_timeout"
	// watchdogMargin is how much later than the longest deadline the kernel complains.
	watchdogMargin = 10 * time.Second
	// complaining is how long a complaint of the kernel is a problem.
	complaining = 5 * time.Minute
	// linesALook bounds what is read of the kernel's log at a time.
	linesALook = 4096
)

// A kernelWatch is the kernel's own watchdog of permission events (Linux 6.18): it
// writes to its log that a process has had an event for too long. That is somebody's
// view of the agent who does not depend on it.
type kernelWatch struct {
	log     *slog.Logger
	kmsg    int           // the kernel's log, from the start of the agent on; -1 if it cannot be read
	longest time.Duration // deadline of all tenants

	complaints atomic.Uint64
	last       atomic.Int64 // unix time of the last one
}

// watchKernel sets the kernel's watchdog up, unless it is, and begins to read its log. What does not work is said, and does without.
func watchKernel(cfg *tenant.Config, log *slog.Logger) *kernelWatch {
	k := &kernelWatch{log: log, kmsg: -1}
	if !k.tune(cfg) {
		return k
	}
	fd, err := unix.Open(kernelLogFile, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
	}
	if err != nil {
		log.Warn("the kernel's log cannot be read: what it says of events without an answer is not noticed",
			"file", kernelLogFile, "error", err)
		return k
	}
	k.kmsg = fd
	return k
}

func (k *kernelWatch) close() {
	if k.kmsg >= 0 {
		_ = unix.Close(k.kmsg)
	}
}

// tune sets the kernel's timeout if it has none, or one before a deadline. It reports
// whether the kernel has a watchdog that is on. Groups are watched from the first mark
// on that is placed while it is. It is never switched off again: that would keep a CPU
// busy for as long as a group is watched (docs/kernel.md).
func (k *kernelWatch) tune(cfg *tenant.Config) bool {
	k.longest = 0
	for i := range cfg.Tenants {
		k.longest = max(k.longest, cfg.Tenants[i].Deadline)
	}
	now, err := readKnob(watchdogKnob)
	switch {
	case errors.Is(err, os.ErrNotExist): // an older kernel
		return false
	case err == nil && now != 0 && time.Duration(now)*time.Second >= k.longest:
		return true
	}
	want := int((k.longest + watchdogMargin + time.Second - 1) / time.Second)
	if err == nil {
		err = os.WriteFile(watchdogKnob, fmt.Append(nil, want), 0)
	}
	if err != nil {
		k.log.Warn("the kernel's watchdog of permission events cannot be set", "error", err,
			"remedy", fmt.Sprintf("sysctl fs.fanotify.watchdog_timeout=%d", want))
		return now != 0
	}
	k.log.Info("set the kernel's watchdog of permission events", "fs.fanotify.watchdog_timeout", want, "was", now)
	return true
}

// retune is tune for another configuration.
func (k *kernelWatch) retune(cfg *tenant.Config) {
	if k != nil {
		k.tune(cfg)
	}
}

// look reads what the kernel has written since the last look.
func (k *kernelWatch) look() {
	if k == nil || k.kmsg < 0 {
		return
	}
	var line [8192]byte // one record, or EINVAL
	for range linesALook {
		n, err := unix.Read(k.kmsg, line[:])
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EINTR): // overwritten, too long
			continue
		case err != nil: // EAGAIN: no more
			return
		}
		tid, timeout, found := complaint(line[:n])
		if !found || timeout < k.longest || !isOurs(tid) {
			continue
		}
		k.complaints.Add(1)
		k.last.Store(time.Now().Unix())
		k.log.Error("the kernel says that an event has waited for the agent's answer for too long",
			"thread", tid, "longerThan", timeout)
	}
}

// problem says what the kernel has complained of lately, or "".
func (k *kernelWatch) problem() string {
	if k == nil || k.last.Load() == 0 || time.Since(time.Unix(k.last.Load(), 0)) > complaining {
		return ""
	}
	return fmt.Sprintf("the kernel has complained %d times that an event got no answer in time (see dmesg): restart the agent if it goes on", k.complaints.Load())
}

// complaint reads a record of the kernel's log: the thread that read an event which has
// no answer, and for how long it has had it at least.
func complaint(record []byte) (tid int, timeout time.Duration, found bool) {
	head, text, _ := bytes.Cut(record, []byte(";"))
	text, _, _ = bytes.Cut(text, []byte("\n"))
	var from int // priority and facility; the kernel's own is 0, and nobody else may use it
	if _, err := fmt.Sscanf(string(head), "%d,", &from); err != nil || from >= 8 {
		return 0, 0, false
	}
	at := bytes.Index(text, []byte("PID "))
	if at < 0 {
		return 0, 0, false
	}
	const after = ") failed to respond to fanotify queue for more than "
	end := bytes.LastIndex(text, []byte(after)) // the name before it is the thread's own choice
	if end < at {
		return 0, 0, false
	}
	var seconds int
	if _, err := fmt.Sscanf(string(text[at:]), "PID %d", &tid); err != nil {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(string(text[end+len(after):]), "%d seconds", &seconds); err != nil {
		return 0, 0, false
	}
	return tid, time.Duration(seconds) * time.Second, true
}

// isOurs reports whether a thread belongs to this process.
func isOurs(tid int) bool { return tid > 0 && unix.Tgkill(unix.Getpid(), tid, 0) == nil }
