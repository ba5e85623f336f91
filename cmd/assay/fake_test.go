package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
)

// An unknownError is what the agent says of what does not exist.
type unknownError struct{ announce.Refusal }

func (*unknownError) HTTPStatus() int { return http.StatusNotFound }

func (u *unknownError) Unwrap() error { return &u.Refusal }

// fakeStore is a store that works, or not.
func fakeStore(healthy bool) api.StoreStatus {
	st := api.StoreStatus{
		File: "/var/lib/assay/verdicts", Healthy: healthy, Bytes: 3 << 20, MaxBytes: 256 << 20, Restored: 8000, LoadMillis: 12, Written: 120,
	}
	if !healthy {
		st.Error = "no space is left for the verdict store: free some"
		st.Damage = "the verdict store is damaged: 7 of 100 bytes do not verify"
		st.Lost = map[string]uint64{"write": 9}
	}
	return st
}

func (b *fakeBackend) Verdicts(context.Context) (api.Verdicts, error) {
	if b.empty.Load() {
		return api.Verdicts{Cache: api.CacheStatus{MaxBytes: 64 << 20}}, nil
	}
	return api.Verdicts{
		Cache: api.CacheStatus{Files: 8120, Bytes: 1 << 20, MaxBytes: 64 << 20, Hits: 9900, Misses: 100},
		Scopes: []api.VerdictScope{
			{Kind: api.ScopeLayer, Label: "sha256:small", Users: 1, Files: 20, Bytes: 2 << 10},
			{Kind: api.ScopeLayer, Label: "sha256:big\x1b[31m", Users: 2, Files: 8000, Bytes: 1 << 19, Hits: 9000, Misses: 1000},
			{Kind: api.ScopeContainer, Label: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Users: 1, Files: 100, Bytes: 16 << 10, Hits: 1, Misses: 3, Age: 5},
		},
		Scanners: []api.VerdictScanner{{
			Name: "hashes", Config: "c1", Malicious: 2, Hits: 9900, Misses: 100,
			Generations: []api.VerdictGeneration{{Generation: "g0", Verdicts: 120}, {Generation: "g1", Verdicts: 8000, Current: true}},
		}},
		Flushed: map[string]uint64{"layer-gone": 7}, Refused: map[string]uint64{"unmarked": 3},
		Flights: api.FlightStatus{Now: 1, Started: 100, Joined: 12, Dispersed: 2},
		Store:   fakeStore(b.healthy),
	}, nil
}

func (b *fakeBackend) Explain(_ context.Context, container, path string) (api.Explanation, error) {
	c, err := api.FindContainer([]api.ContainerStatus{
		{ID: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Name: "web", Tenant: "payments", PID: 77}, {ID: "3f00", Name: "db"},
	}, container)
	if err != nil {
		return api.Explanation{}, err
	}
	since := time.Now().Add(-3 * time.Hour)
	e := api.Explanation{
		Container: api.ExplainedContainer{ID: c.ID, Name: c.Name, Namespace: "pay-eu", PID: 77, Since: since},
		Policy: api.ExplainedPolicy{
			Tenant: "payments", Mode: "enforce", On: []string{"open", "exec"}, KernelMarks: "auto",
			OnError: "deny", OnTimeout: "allow", OnUnscannable: "deny", OnTooLarge: "deny",
		},
		File: api.ExplainedFile{
			Path: path, Type: "regular", Size: 2048, Identity: "0011aabb",
			Mount: api.Mark{Destination: "/", FSType: "overlay", Kind: "superblock", Why: "its own superblock"},
		},
		Scanners: []api.ExplainedScanner{
			{Name: "hashes", Stage: 1, Generation: "g1"},
			{Name: "clamav", Stage: 2},
		},
	}
	switch path {
	case "/bin/clean":
		e.Layer = api.ExplainedLayer{Pristine: true, Reason: "pristine", Digest: "sha256:big", Directory: "/var/lib/layers/big", Depth: 2}
		e.Scanners[0].Verdicts = []api.KnownVerdict{
			{Verdict: "clean", Generation: "g1", Current: true, Scope: api.ScopeLayer},
			{Verdict: "malicious", Signature: "Old-Alarm", Generation: "g0", Scope: api.ScopeLayer},
		}
		e.Mark = api.ExplainedMark{State: api.MarkPlaced, Lease: api.LeaseHeld, Since: since}
		e.Open = api.Prediction{Answer: api.AnswerAtOnce, Decision: "allow", Source: "kernel", Reason: "clean"}
		e.Exec = api.Prediction{Answer: api.AnswerAtOnce, Decision: "allow", Source: "cache", Reason: "clean"}
		e.Notes = []string{"an exec always asks the agent"}
	case "/tmp/bad":
		e.Layer.Reason = "born-in-container"
		e.Mark.Why = "only clean files are marked"
		e.Open = api.Prediction{Answer: api.AnswerAtOnce, Decision: "deny", Source: "cache", Reason: "malicious"}
		e.Exec = api.Prediction{Answer: api.AnswerScan, Scanners: []string{"hashes", "clamav"}, Detail: "on error: deny"}
	default:
		return api.Explanation{}, &unknownError{announce.Refusal{Message: "container web has no " + path, Remedy: "check the path"}}
	}
	return e, nil
}

// Scan is clean, but for what the name says.
func (b *fakeBackend) Scan(ctx context.Context, req api.ScanRequest, emit func(api.ScanLine) error) (api.ScanTotals, error) {
	send := func(line api.ScanLine) {
		if err := emit(line); err != nil {
			b.scanEnded <- err
		}
	}
	totals := api.ScanTotals{Layers: 2, Files: 10, Bytes: 4096, Cached: 4, Micros: 1_500_000}
	switch req.Name {
	case "/nosuch", "nosuch":
		return api.ScanTotals{}, &unknownError{announce.Refusal{Message: "there is no " + req.Kind + " " + req.Name, Remedy: "pull it first"}}
	case "endless":
		b.scanBegan <- struct{}{}
		send(api.ScanLine{Progress: &api.ScanProgress{Files: 10, FilesDone: 1}})
		<-ctx.Done()
		b.scanEnded <- ctx.Err()
		return totals, ctx.Err()
	}
	send(api.ScanLine{Progress: &api.ScanProgress{Layers: 2, Files: 10, FilesDone: 5, Current: "sha256:big\x1b[31m"}})
	switch req.Name {
	case "bad":
		totals.Malicious = 1
		send(api.ScanLine{Finding: &api.ScanFinding{
			Layer: "sha256:big", Path: "/opt/x\x1b[2J", Size: 68, Verdict: "malicious",
			Scanners: []audit.Scanner{{Name: "hashes", Verdict: "malicious", Signature: "Eicar-Test"}},
		}})
	case "secret":
		totals.Unscannable = 1
		send(api.ScanLine{Unscannable: &api.ScanFinding{Layer: "sha256:big", Path: "/opt/y", Size: 99, Verdict: "unscannable", Detail: "encrypted"}})
	case "broken":
		totals.Errors = 1
		send(api.ScanLine{Error: &api.ScanError{Layer: "sha256:big", Path: "/opt/z", Error: "clamav: connection refused", Remedy: "start clamd"}})
	case "failing":
		return totals, &announce.Refusal{Message: "the layer is gone", Remedy: "pull it again"}
	}
	return totals, nil
}

func (b *fakeBackend) Ahead(_ context.Context, paused bool) (api.AheadStatus, error) {
	b.paused.Store(paused)
	return b.aheadStatus(), nil
}

func (b *fakeBackend) Release(_ context.Context, container string) (api.Released, error) {
	c, err := api.FindContainer([]api.ContainerStatus{{ID: "3f2a9b1c8d7e6f5a4b3c2d1e0f", Name: "web"}}, container)
	return api.Released{ID: c.ID, Name: c.Name, Tenant: "payments", PID: 77}, err
}

// ServeNRI sends a greeting over the connection that was handed over.
func (b *fakeBackend) ServeNRI(_ context.Context, conn net.Conn) error {
	_, err := io.WriteString(conn, "from the agent\n")
	return errors.Join(err, conn.Close())
}

// aheadStatus is a scan of layers that is half done.
func (b *fakeBackend) aheadStatus() api.AheadStatus {
	st := api.AheadStatus{
		State: api.AheadScanning, Since: time.Now().Add(-3 * time.Hour), LayersQueued: 2, LayersDone: 5, FilesDone: 1200, FilesTotal: 2400,
		Bytes: 5 << 20, Current: "sha256:big\x1b[31m", Findings: 1,
	}
	if b.paused.Load() {
		st.State, st.Current = api.AheadPaused, ""
	}
	return st
}

// interruptCommand shows that a signal ends the program and the agent's scan.
func interruptCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: interrupt")
	}
	holder, _ := ts.Value(agentKey).(*agentHolder)
	cmd := exec.CommandContext(context.Background(), "assay", "scan", "image", "--socket", ts.Getenv("SOCK"), "endless")
	cmd.Stderr, cmd.Stdout = ts.Stderr(), ts.Stdout()
	ts.Check(cmd.Start())
	<-holder.agent.backend.scanBegan
	ts.Check(cmd.Process.Signal(unix.SIGINT))
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	_, err := fmt.Fprintf(ts.Stdout(), "exit code %d, scan: %v\n", cmd.ProcessState.ExitCode(), <-holder.agent.backend.scanEnded)
	ts.Check(err)
}
