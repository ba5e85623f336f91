package harness

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Status is what these tests read from `assay -o json status`. It is written
// down here a second time on purpose: a renamed field has to fail a test.
type Status struct {
	Version     string   `json:"version"`
	PID         int      `json:"pid"`
	ConfigHash  string   `json:"configHash"`
	ReloadError string   `json:"reloadError"`
	Healthy     bool     `json:"healthy"`
	Goroutines  int      `json:"goroutines"`
	Problems    []string `json:"problems"`
	Tenants     []struct {
		Name       string `json:"name"`
		Mode       string `json:"mode"`
		Containers int    `json:"containers"`
		Queued     int    `json:"queued"`
		InFlight   int    `json:"inFlight"`
		Pending    int    `json:"pending"`
		Held       int    `json:"held"`
		Stuck      int    `json:"stuck"`
		// OldestMicros is for how long the first opener waits.
		OldestMicros int64             `json:"oldestMicros"`
		Scans        uint64            `json:"scans"`
		Marks        int               `json:"marks"`
		Allowed      uint64            `json:"allowed"`
		Denied       uint64            `json:"denied"`
		Unscanned    uint64            `json:"unscanned"`
		Reasons      map[string]uint64 `json:"reasons"`
	} `json:"tenants"`
	Containers []struct {
		ID        string `json:"id"`
		Namespace string `json:"namespace"`
		Tenant    string `json:"tenant"`
		PID       int    `json:"pid"`
		Marks     []struct {
			Destination string `json:"destination"`
			FSType      string `json:"fsType"`
			Kind        string `json:"kind"`
			Why         string `json:"why"`
		} `json:"marks"`
		Kept bool `json:"kept"`
	} `json:"containers"`
	Keeper struct {
		Backend string `json:"backend"`
		PID     int    `json:"pid"`
		Trouble string `json:"trouble"`
		Entries []struct {
			Key    string `json:"key"`
			Leases int    `json:"leases"`
		} `json:"entries"`
	} `json:"keeper"`
	NRI struct {
		Connected      bool   `json:"connected"`
		Runtime        string `json:"runtime"`
		RuntimeVersion string `json:"runtimeVersion"`
		Connections    uint64 `json:"connections"`
		Connection     string `json:"connection"`
		Error          string `json:"error"`
		Running        struct {
			Containers int `json:"containers"`
			Guarded    int `json:"guarded"`
			Failed     int `json:"failed"`
		} `json:"running"`
		Hooked uint64 `json:"hooked"`
		Open   uint64 `json:"open"`
	} `json:"nri"`
	TakeOver *struct {
		Containers int      `json:"containers"`
		Unguarded  []string `json:"unguarded"`
		Failed     []string `json:"failed"`
	} `json:"takeOver"`
	Scanners []struct {
		Name       string `json:"name"`
		Healthy    bool   `json:"healthy"`
		Error      string `json:"error"`
		Generation string `json:"generation"`
	} `json:"scanners"`
	Records struct {
		Written           uint64 `json:"written"`
		Lost              uint64 `json:"lost"`
		LostAtCrash       uint64 `json:"lostAtCrash"`
		Pending           uint64 `json:"pending"`
		Error             string `json:"error"`
		Subscribers       int    `json:"subscribers"`
		LostToSubscribers uint64 `json:"lostToSubscribers"`
	} `json:"records"`
	Store  Store `json:"store"`
	Events struct {
		Read          uint64            `json:"read"`
		Unopened      map[string]uint64 `json:"unopened"`
		FailedAnswers uint64            `json:"failedAnswers"`
	} `json:"events"`
	Descriptors struct {
		Limit  int `json:"limit"`
		Open   int `json:"open"`
		Shares []struct {
			Kind string `json:"kind"`
			Max  int    `json:"max"`
		} `json:"shares"`
	} `json:"descriptors"`
	Marks struct {
		Now     int               `json:"now"`
		Placed  uint64            `json:"placed"`
		Broken  uint64            `json:"broken"`
		Flushed uint64            `json:"flushed"`
		Skipped map[string]uint64 `json:"skipped"`
	} `json:"marks"`
	Ahead struct {
		State        string `json:"state"`
		LayersQueued int    `json:"layersQueued"`
		LayersDone   int    `json:"layersDone"`
		FilesDone    int64  `json:"filesDone"`
		FilesTotal   int64  `json:"filesTotal"`
		Findings     int    `json:"findings"`
	} `json:"ahead"`
}

// A Record is what these tests read from an event record.
type Record struct {
	Seq       uint64 `json:"seq"`
	Tenant    string `json:"tenant"`
	Container struct {
		ID          string            `json:"id"`
		Name        string            `json:"name"`
		Pod         string            `json:"pod"`
		Namespace   string            `json:"namespace"`
		Image       string            `json:"image"`
		ImageDigest string            `json:"imageDigest"`
		Labels      map[string]string `json:"labels"`
	} `json:"container"`
	Op   string `json:"op"`
	Path string `json:"path"`
	PID  int    `json:"pid"`
	File struct {
		Layer    string `json:"layer"`
		Size     int64  `json:"size"`
		Pristine bool   `json:"pristine"`
	} `json:"file"`
	Decision string `json:"decision"`
	Verdict  string `json:"verdict"`
	Source   string `json:"source"`
	Reason   string `json:"reason"`
	Detail   string `json:"detail"`
	Micros   int64  `json:"micros"`
	Scanners []struct {
		Name      string `json:"name"`
		Verdict   string `json:"verdict"`
		Signature string `json:"signature"`
	} `json:"scanners"`
}

// Signature returns the first signature that a scanner named, or "".
func (r Record) Signature() string {
	for _, s := range r.Scanners {
		if s.Signature != "" {
			return s.Signature
		}
	}
	return ""
}

// Status returns the agent's account of itself.
func (a *Agent) Status(tb testing.TB) Status {
	tb.Helper()
	r := a.CLI(tb, "-o", "json", "status")
	var status Status
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		tb.Fatalf("assay status: %v: %s", err, r)
	}
	return status
}

// Reason returns how many events of a tenant were answered for a reason.
func (s Status) Reason(tenant, reason string) uint64 {
	for _, tn := range s.Tenants {
		if tn.Name == tenant {
			return tn.Reasons[reason]
		}
	}
	return 0
}

// Scans returns how many files of a tenant scanners were asked about.
func (s Status) Scans(tenant string) uint64 {
	for _, tn := range s.Tenants {
		if tn.Name == tenant {
			return tn.Scans
		}
	}
	return 0
}

// Denied returns how many events the agent has denied.
func (s Status) Denied() uint64 {
	var n uint64
	for _, tn := range s.Tenants {
		n += tn.Denied
	}
	return n
}

// Waiting returns how many events have no answer yet.
func (s Status) Waiting() int {
	var n int
	for _, tn := range s.Tenants {
		n += tn.Queued + tn.InFlight
	}
	return n
}

// AwaitIdle waits until the agent guards nothing and owes no answer.
func (a *Agent) AwaitIdle(tb testing.TB) {
	tb.Helper()
	Eventually(tb, "the agent lets go of every container", func() error {
		s := a.Status(tb)
		if len(s.Containers) > 0 || s.Waiting() > 0 {
			return fmt.Errorf("it still has %d containers and %d events", len(s.Containers), s.Waiting())
		}
		return nil
	})
}

// A follower collects an agent's records as `assay events --follow` prints them.
type follower struct {
	mu      sync.Mutex
	records []Record
	changed chan struct{} // closed and replaced with every record
	err     error
}

// follow starts the follower of an agent. It ends with the test.
func (a *Agent) follow(tb testing.TB) *follower {
	tb.Helper()
	f := &follower{changed: make(chan struct{})}
	cmd := exec.Command(a.suite.Bin("assay"), "--socket", a.Socket, "-o", "json", "events", "--follow")
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.collect(bufio.NewScanner(out))
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait() // killed
	})
	return f
}

func (f *follower) collect(lines *bufio.Scanner) {
	for lines.Scan() {
		var r Record
		err := json.Unmarshal(lines.Bytes(), &r)
		f.mu.Lock()
		if err != nil {
			f.err = errors.Join(f.err, fmt.Errorf("record %q: %w", lines.Text(), err))
		}
		f.records = append(f.records, r)
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
	}
}

// find returns the first record that matches, or the channel that the next
// record closes.
func (f *follower) find(match func(Record) bool) (Record, bool, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.records {
		if match(r) {
			return r, true, nil, f.err
		}
	}
	return Record{}, false, f.changed, f.err
}

// CountRecords returns how many records so far match.
func (a *Agent) CountRecords(match func(Record) bool) int {
	a.events.mu.Lock()
	defer a.events.mu.Unlock()
	n := 0
	for _, r := range a.events.records {
		if match(r) {
			n++
		}
	}
	return n
}

// AwaitRecord waits for a record that matches and returns the first one.
func (a *Agent) AwaitRecord(tb testing.TB, what string, match func(Record) bool) Record {
	tb.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	for {
		r, ok, changed, err := a.events.find(match)
		if err != nil {
			tb.Fatalf("events: %v", err)
		}
		if ok {
			return r
		}
		select {
		case <-changed:
		case <-timer.C:
			tb.Fatalf("no record of %s; there are:\n%s", what, a.events)
		}
	}
}

// String lists what has been recorded, for a failed test's message.
func (f *follower) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, r := range f.records {
		fmt.Fprintf(&b, "%d %s %s %s %s %s %s %s\n", r.Seq, r.Tenant, r.Container.ID, r.Op, r.Path, r.Decision, r.Verdict, r.Reason)
	}
	return b.String()
}

// AwaitDenied waits for the record of a denied open or exec of path for being
// malicious. A container may call its file by the path that it opened.
func (a *Agent) AwaitDenied(tb testing.TB, path string) Record {
	tb.Helper()
	return a.AwaitRecord(tb, "a denied "+path, func(r Record) bool {
		return r.Path == path && r.Decision == "deny" && r.Verdict == "malicious" && r.Reason == "malicious"
	})
}
