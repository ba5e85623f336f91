package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/tenant"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// keepKnobs puts the kernel's settings back that an agent changes, but never switches
// the kernel's watchdog off: while any group on the machine is watched, that keeps a CPU
// busy (docs/kernel.md).
func keepKnobs(t *testing.T) {
	t.Helper()
	for _, knob := range []string{groupsKnob, watchdogKnob} {
		was, err := os.ReadFile(knob)
		if err != nil {
			continue // an older kernel
		}
		if string(was) == "0\n" {
			was = []byte("600")
		}
		t.Cleanup(func() { _ = os.WriteFile(knob, was, 0) })
	}
}

func writeKnob(t *testing.T, knob, value string) {
	t.Helper()
	if err := os.WriteFile(knob, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func wantKnob(t *testing.T, want int) {
	t.Helper()
	if got, err := readKnob(watchdogKnob); err != nil || got != want {
		t.Errorf("the kernel's watchdog is set to %d, %v, want %d", got, err, want)
	}
}

func withDeadlines(deadlines ...time.Duration) *tenant.Config {
	cfg := &tenant.Config{}
	for _, d := range deadlines {
		cfg.Tenants = append(cfg.Tenants, tenant.Tenant{Deadline: d})
	}
	return cfg
}

// TestKernelWatchTunes: the kernel's timeout is later than every deadline, also after a
// reload, and one that somebody else has set is left alone if it is.
func TestKernelWatchTunes(t *testing.T) {
	keepKnobs(t)
	writeKnob(t, watchdogKnob, "0")
	k := watchKernel(withDeadlines(3*time.Second, 1500*time.Millisecond), discard())
	defer k.close()
	wantKnob(t, 13)
	k.retune(withDeadlines(20500 * time.Millisecond))
	wantKnob(t, 31)
	writeKnob(t, watchdogKnob, "77")
	k.retune(withDeadlines(time.Second))
	wantKnob(t, 77)
}

// TestComplaint reads lines of the kernel's log.
func TestComplaint(t *testing.T) {
	const says = " failed to respond to fanotify queue for more than 15 seconds\n"
	for record, tid := range map[string]int{
		"4,1063,5001,-;PID 4711 (assayd)" + says:                         4711,
		"4,1063,5001,-;fanotify: PID 4711 (assayd)" + says + " KEY=x\n":  4711,
		"4,1063,5001,-;PID 12 (PID 13 (x) failed to respond)" + says:     12,
		"12,1063,5001,-;PID 4711 (assayd)" + says:                        0, // written by a process
		"4,1063,5001,-;PID x (assayd)" + says:                            0,
		"4,1063,5001,-;PID 4711 (assayd) failed to respond to something": 0,
		"4,1063,5001,-;eth0: link up\n":                                  0,
		"":                                                               0,
	} {
		got, timeout, found := complaint([]byte(record))
		if found != (tid != 0) || got != tid || found && timeout != 15*time.Second {
			t.Errorf("%q: %d, %v, %v, want %d", record, got, timeout, found, tid)
		}
	}
}

// TestKernelLogIsRead: the kernel's log is read from now on, without waiting, and a line
// that a process has written there is not taken for the kernel's.
func TestKernelLogIsRead(t *testing.T) {
	keepKnobs(t)
	k := watchKernel(withDeadlines(0), discard())
	defer k.close()
	if k.kmsg < 0 {
		t.Fatal("the kernel's log cannot be read")
	}
	forged := fmt.Sprintf("<4>PID %d (assayd) failed to respond to fanotify queue for more than 99 seconds\n", unix.Getpid())
	if err := os.WriteFile(kernelLogFile, []byte(forged), 0); err != nil {
		t.Fatal(err)
	}
	var line [8192]byte
	n, err := unix.Read(k.kmsg, line[:])
	for ; err == nil && !strings.Contains(string(line[:n]), forged[len("<4>"):]); n, err = unix.Read(k.kmsg, line[:]) {
	}
	if err != nil {
		t.Fatalf("the line was not read: %v", err)
	}
	if err := os.WriteFile(kernelLogFile, []byte(forged), 0); err != nil {
		t.Fatal(err)
	}
	k.look()
	if k.complaints.Load() != 0 {
		t.Error("a process's line counts as a complaint of the kernel")
	}
}

// TestWatchdogTellsOfComplaints: for a while.
func TestWatchdogTellsOfComplaints(t *testing.T) {
	readers, err := fanotify.Start(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	k := &kernelWatch{log: discard(), kmsg: -1}
	w := &watchdog{readers: readers, kernel: k, log: discard()}
	for ago, want := range map[time.Duration]bool{0: true, complaining / 2: true, 2 * complaining: false} {
		k.complaints.Store(3)
		k.last.Store(time.Now().Add(-ago).Unix())
		if got := w.wrong(); (len(got) == 1) != want || want && !strings.Contains(got[0], "complained 3 times") {
			t.Errorf("after %v the problems are %q", ago, got)
		}
		if !w.look() {
			t.Errorf("after %v the agent counts as hung", ago)
		}
	}
}

// TestKernelWatchIsPatient: a complaint that comes before the deadline is none.
func TestKernelWatchIsPatient(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := int(r.Fd())
	if err := unix.SetNonblock(fd, true); err != nil { // which Fd undid
		t.Fatal(err)
	}
	k := &kernelWatch{log: discard(), kmsg: fd, longest: 20 * time.Second}
	for _, line := range []struct {
		pid, seconds int
		counts       uint64
	}{{unix.Getpid(), 19, 0}, {1, 30, 0}, {unix.Getpid(), 20, 1}} {
		if _, err := w.WriteString("4,1,1,-;PID " + strconv.Itoa(line.pid) + " (assayd) failed to respond to fanotify queue for more than " +
			strconv.Itoa(line.seconds) + " seconds\n"); err != nil {
			t.Fatal(err)
		}
		k.look()
		if n := k.complaints.Load(); n != line.counts {
			t.Errorf("%+v: %d complaints", line, n)
		}
	}
}

// TestWatchdogTenants: what is wrong with a tenant is told once in the log and as long
// as it lasts in the status; only openers that wait for too long keep systemd's
// watchdog from being fed.
func TestWatchdogTenants(t *testing.T) {
	readers, err := fanotify.Start(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(readers.Stop)
	var log strings.Builder
	var now []guard.TenantHealth
	w := &watchdog{readers: readers, log: slog.New(slog.NewTextHandler(&log, nil)), tenants: func() []guard.TenantHealth { return now }}
	for _, step := range []struct {
		health guard.TenantHealth
		fed    bool
		says   string // in the status
		logged int    // lines
	}{
		{guard.TenantHealth{}, true, "", 0},
		{guard.TenantHealth{Stuck: 2}, true, "2 scans did not come back", 1},
		{guard.TenantHealth{Stuck: 3}, true, "3 scans did not come back", 0},
		{guard.TenantHealth{Stuck: 48, Exhausted: true}, true, "none is left", 2}, // one over, one new
		{guard.TenantHealth{Stalled: true}, true, "no scan has ended", 2},
		{guard.TenantHealth{Overdue: true, Oldest: time.Minute}, false, "has waited for 1m0s", 2},
		{guard.TenantHealth{}, true, "", 1},
	} {
		step.health.Tenant = "payments"
		now = []guard.TenantHealth{step.health, {Tenant: "other"}}
		log.Reset()
		if fed := w.look(); fed != step.fed || w.answering() != step.fed {
			t.Errorf("%+v: fed: %v", step.health, fed)
		}
		got := w.wrong()
		if (len(got) == 1) != (step.says != "") || step.says != "" && (!strings.Contains(got[0], step.says) || !strings.Contains(got[0], "payments")) {
			t.Errorf("%+v: the problems are %q", step.health, got)
		}
		if n := strings.Count(log.String(), "\n"); n != step.logged {
			t.Errorf("%+v: %d lines, want %d:\n%s", step.health, n, step.logged, log.String())
		}
	}
}
