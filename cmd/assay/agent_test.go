package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

// A fakeBackend is an agent with fixed answers. A file is malicious if it
// contains "EICAR", unscannable if it contains "SECRET".
type fakeBackend struct {
	healthy   bool
	empty     atomic.Bool // no verdicts
	log       *audit.Log
	paused    atomic.Bool
	scanBegan chan struct{}
	scanEnded chan error // of the image "endless"
}

var errUnknownTenant = &announce.Refusal{Message: `there is no tenant "nosuch"`, Remedy: "the tenants are: payments, default"}

func (b *fakeBackend) Announce(context.Context, announce.Container) (announce.Guarded, error) {
	return announce.Guarded{}, errors.New("not part of these tests")
}

func (b *fakeBackend) Events() *audit.Log { return b.log }

func (b *fakeBackend) Status(context.Context) api.Status {
	started := time.Now().Add(-3 * time.Hour)
	st := api.Status{
		Version: "1.2.3", PID: 4321, Started: started, ConfigFile: "/etc/assay/assay.yaml",
		ConfigHash: "0123456789abcdef", Healthy: b.healthy, Readers: 2,
		Tenants: []api.TenantStatus{
			{
				Name: "payments", Mode: "enforce", Containers: 1, Queued: 3, InFlight: 2, Scans: 40, Marks: 7,
				Pending: 6, OldestMicros: 1_234_567, Held: 5, Stuck: 1, Allowed: 100, Denied: 4, Unscanned: 5,
				Reasons: map[string]uint64{"clean": 95, "timeout": 5, "malicious": 4},
			},
			{Name: "default", Mode: "audit", Reasons: map[string]uint64{}},
		},
		Containers: []api.ContainerStatus{{
			ID: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Name: "web\x1b[31m", Namespace: "pay-eu", Tenant: "payments", PID: 77, Since: started,
			Marks: []api.Mark{
				{Destination: "/", FSType: "overlay", Kind: "superblock", Why: "its own superblock"},
				{Destination: "/data", FSType: "ext4", Kind: "mount", Why: "shared with the host"},
				{Destination: "/pg", FSType: "ext4", Kind: "none", Why: "excluded"},
			},
			Allowed: 100, Denied: 4, Kept: b.healthy,
		}},
		Scanners: []api.ScannerStatus{{Name: "hashes", Driver: "hashlist", Healthy: true, Generation: "g1"}},
		Records:  api.RecordsStatus{Written: 104, Lost: 1, File: "/var/log/assay/events.jsonl", Subscribers: 1, LostAtCrash: 3},
		Cache:    api.CacheStatus{Files: 8120, Bytes: 1 << 20, MaxBytes: 64 << 20, Hits: 9900, Misses: 100},
		Store:    fakeStore(b.healthy),
		Marks:    api.MarksStatus{Now: 7, Max: 1000, Placed: 20, Broken: 3, Evicted: 1, Flushed: 9, Shed: 2, Skipped: map[string]uint64{"writer": 5}},
		Ahead:    b.aheadStatus(),
		Events:   api.EventsStatus{Read: 5000, Unopened: map[string]uint64{"EMFILE": 3}, ReadErrors: 2, Malformed: 1, FailedAnswers: 4, KernelComplaints: 6},
		Descriptors: api.DescriptorsStatus{Limit: 1024, Open: 77, Shares: []api.DescriptorShare{
			{Kind: "reading", Max: 8}, {Kind: "held", Max: 512, Used: new(5)}, {Kind: "marks", Max: 160, Used: new(7)},
		}},
		NRI: api.NRIStatus{
			Mode: api.NRIAuto, Connected: true, Since: time.Now().Add(-3 * time.Hour), Connection: "external",
			Runtime: "containerd", RuntimeVersion: "v2.2.9", NRIVersion: "0.11.0", Connections: 1,
			Running: api.NRIProgress{Containers: 12, Guarded: 11, Failed: 1}, Hooked: 40,
		},
		Keeper: api.KeeperStatus{
			Backend: api.KeeperProcess, Socket: "/run/assay/keeper.sock", PID: 77, Version: "1.2.3", Since: started,
			Entries: []api.KeptEntry{{Key: "3f2a9b1c8d7e6f5a4b3c2d1e0f@1", Grace: 30_000_000, Fallback: "deny", Leases: 7, Pending: 1}},
		},
	}
	if !b.healthy {
		st.Problems = []string{"scanner hashes is down: start it"}
		st.Scanners[0].Healthy, st.Scanners[0].Error = false, "connection refused"
		st.Keeper = api.KeeperStatus{Backend: api.KeeperProcess, Lost: 2, Trouble: "no such file"}
		st.TakeOver = &api.TakeOverStatus{
			At: started, Took: 2100, Since: started.Add(-1500 * time.Millisecond), Why: "its connection ended",
			Containers: 3, Settled: 1, Answered: 4, Unguarded: []string{"3f2a9b1c8d7e6f5a4b3c2d1e0f"},
		}
	}
	return st
}

func (b *fakeBackend) Check(_ context.Context, fd int, tenant, path string) (api.CheckResult, error) {
	if tenant == "nosuch" {
		return api.CheckResult{}, errUnknownTenant
	}
	if tenant == "broken" {
		return api.CheckResult{}, errors.New("out of descriptors")
	}
	if tenant == "" {
		tenant = "default"
	}
	content := make([]byte, 1<<16)
	n, err := unix.Pread(fd, content, 0)
	if err != nil {
		return api.CheckResult{}, err
	}
	content = content[:n]
	r := api.CheckResult{
		Path: path, Tenant: tenant, Decision: "allow", Verdict: "clean", Reason: audit.ReasonClean, Size: int64(len(content)), Micros: 1500,
		Scanners: []audit.Scanner{{Name: "hashes", Generation: "g1", Verdict: "clean", Micros: 1400}},
	}
	switch {
	case strings.Contains(string(content), "EICAR"):
		r.Decision, r.Verdict, r.Reason = "deny", "malicious", audit.ReasonMalicious
		r.Scanners[0].Verdict, r.Scanners[0].Signature = "malicious", "Eicar-Test"
		if tenant == "audited" {
			r.Decision, r.Reason = "allow", audit.ReasonAuditMode
		}
	case strings.Contains(string(content), "SECRET"):
		r.Decision, r.Verdict, r.Reason = "deny", "unscannable", audit.ReasonUnscannable
		r.Scanners[0].Verdict, r.Scanners[0].Detail = "unscannable", "encrypted"
	}
	return r, nil
}

// A fakeAgent is a fakeBackend on a socket.
type fakeAgent struct {
	backend *fakeBackend
	server  *api.Server
	served  chan error
}

// startAgent serves a fakeBackend with three records on the socket at path.
func startAgent(path string, healthy bool) (*fakeAgent, error) {
	log, err := audit.NewLog(audit.Options{Keep: 8})
	if err != nil {
		return nil, err
	}
	ln, err := api.Listen(path)
	if err != nil {
		return nil, err
	}
	a := &fakeAgent{backend: &fakeBackend{healthy: healthy, log: log, scanBegan: make(chan struct{}, 8), scanEnded: make(chan error, 8)}, served: make(chan error, 1)}
	a.server = api.NewServer(a.backend, slog.New(slog.DiscardHandler))
	go func() { a.served <- a.server.Serve(ln) }()
	for i := range 3 {
		a.append(i)
	}
	return a, nil
}

// appendDirty adds a record of a writer.
func (a *fakeAgent) appendDirty() {
	a.backend.log.Append(audit.Record{
		Time: time.Date(2026, 1, 2, 3, 4, 59, 0, time.UTC), Tenant: "payments",
		Container: audit.Container{ID: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Name: "web"}, Op: "dirty", Path: "/app/log",
	})
}

// append adds the record that stands for number i: denied if i is odd.
func (a *fakeAgent) append(i int) {
	r := audit.Record{
		Time: time.Date(2026, 1, 2, 3, 4, i, 0, time.UTC), Tenant: "payments",
		Container: audit.Container{ID: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Name: "web"},
		Op:        "open", Path: fmt.Sprintf("/app/file%d\x1b[2J", i), PID: 100 + i, Decision: "allow", Verdict: "clean",
		Source: "scan", Reason: audit.ReasonClean,
		Scanners: []audit.Scanner{{Name: "hashes", Verdict: "clean"}},
	}
	if i%2 == 1 {
		r.Tenant, r.Container = "default", audit.Container{ID: "aaaabbbbccccddddeeee"}
		r.Op, r.Decision, r.Verdict, r.Reason = "exec", "deny", "malicious", audit.ReasonMalicious
		r.Scanners[0].Verdict, r.Scanners[0].Signature = "malicious", "Eicar-Test"
	}
	a.backend.log.Append(r)
}

// stop ends the agent and everything that is connected to it.
func (a *fakeAgent) stop() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // whoever is still connected is hung up on
	err := a.server.Shutdown(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, <-a.served, a.backend.log.Close(context.Background()))
}

// agentKey finds a script's agent.
const agentKey = "agent"

func agentCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: agent healthy|unhealthy|append|stop")
	}
	holder, ok := ts.Value(agentKey).(*agentHolder)
	if !ok {
		ts.Fatalf("no agent can be held")
	}
	switch args[0] {
	case "healthy", "unhealthy":
		a, err := startAgent(ts.Getenv("SOCK"), args[0] == "healthy")
		ts.Check(err)
		holder.agent = a
		ts.Defer(holder.stop)
	case "append":
		for _, arg := range args[1:] {
			i, err := strconv.Atoi(arg)
			ts.Check(err)
			holder.agent.append(i)
		}
	case "dirty":
		holder.agent.appendDirty()
	case "empty":
		holder.agent.backend.empty.Store(true)
	case "stop":
		holder.stop()
	default:
		ts.Fatalf("unknown: agent %s", args[0])
	}
}

// An agentHolder is where a script's agent is kept between its commands.
type agentHolder struct {
	agent *fakeAgent
}

func (h *agentHolder) stop() {
	if h.agent == nil {
		return
	}
	a := h.agent
	h.agent = nil
	if err := a.stop(); err != nil {
		panic(fmt.Sprintf("agent: %v", err))
	}
}

// followCommand shows that --follow prints what comes while it runs, and how it
// ends.
func followCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: follow INT|TERM|stop LINES RECORD [FLAG...]")
	}
	holder, _ := ts.Value(agentKey).(*agentHolder)
	lines, err := strconv.Atoi(args[1])
	ts.Check(err)
	record, err := strconv.Atoi(args[2])
	ts.Check(err)
	cmd := exec.CommandContext(context.Background(), "assay",
		append([]string{"events", "--follow", "--socket", ts.Getenv("SOCK")}, args[3:]...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	cmd.Stderr = ts.Stderr()
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	text := bufio.NewReader(out)
	ts.Check(copyLines(ts.Stdout(), text, lines))
	if lines > 0 {
		holder.agent.append(record)
		ts.Check(copyLines(ts.Stdout(), text, 1))
	} else {
		ts.Check(appendUntilSeen(holder.agent, record, ts.Stdout(), text))
	}
	switch args[0] {
	case "INT":
		ts.Check(cmd.Process.Signal(unix.SIGINT))
	case "TERM":
		ts.Check(cmd.Process.Signal(unix.SIGTERM))
	case "stop":
		holder.stop()
	}
	_, err = io.Copy(ts.Stdout(), text)
	ts.Check(err)
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	_, err = fmt.Fprintf(ts.Stdout(), "exit code %d\n", cmd.ProcessState.ExitCode())
	ts.Check(err)
}

// appendUntilSeen appends records until the program, of which nothing tells when
// it is ready, prints the first line.
func appendUntilSeen(a *fakeAgent, record int, to io.Writer, from *bufio.Reader) error {
	seen := make(chan error, 1)
	go func() { seen <- copyLines(to, from, 1) }()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case err := <-seen:
			return err
		case <-again.C:
			a.append(record)
		}
	}
}

// copyLines copies n lines.
func copyLines(to io.Writer, from *bufio.Reader, n int) error {
	for range n {
		line, err := from.ReadString('\n')
		if _, writeErr := io.WriteString(to, line); err != nil || writeErr != nil {
			return errors.Join(err, writeErr)
		}
	}
	return nil
}
