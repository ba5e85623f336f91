package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

const (
	// deadline is every test's, for each event.
	deadline = 2 * time.Second
	// margin is what a machine that is busy with other things may add to it. Whoever
	// waits longer than both hangs.
	margin = 8 * time.Second
)

// clamdConfig returns a configuration whose only scanner is the clamd at socket, with
// the deadline of these tests.
func clamdConfig(socket string, policy ...string) string {
	policy = append(policy, "deadline: "+deadline.String(), "onError: deny", "onTimeout: deny", `scanAhead: "off"`)
	return harness.ClamdScanner(socket) + "tenants:\n" + harness.Tenant("default", "{}", "clamav", policy...)
}

// clamLoad is a load whose bad content is what clamd finds.
func clamLoad(processes int) Load {
	_, content := harness.ClamSignature()
	return Load{Processes: processes, Content: content, BadFiles: []string{harness.ClamFile}, Pause: time.Millisecond}
}

// A misfortune happens to a scanner and goes away again.
type misfortune struct {
	name   string
	begin  func(t *testing.T)
	end    func(t *testing.T)
	paid   bool   // clean files that have to be scanned are refused meanwhile
	reason string // for which, in the agent's counters
}

// ofFake are the misfortunes of a clamd that misbehaves.
func ofFake(clamd *Clamd) []misfortune {
	well := func(*testing.T) { clamd.Do(Misbehaviour{}); clamd.HangUp() }
	do := func(m Misbehaviour) func(*testing.T) { return func(*testing.T) { clamd.Do(m) } }
	always := func(text string, ending bool) func(string) (string, bool) {
		return func(string) (string, bool) { return text, ending }
	}
	half := func(ending bool) func(string) (string, bool) {
		return func(plain string) (string, bool) { return plain[:len(plain)/2], ending }
	}
	return []misfortune{
		{"slow", do(Misbehaviour{Before: func() { <-time.After(100 * time.Millisecond) }}), well, false, ""},
		{"half a line and silence", do(Misbehaviour{Answer: half(false)}), well, true, "timeout"},
		{"half a line and gone", do(Misbehaviour{Answer: half(true)}), well, true, "error"},
		{"garbage", do(Misbehaviour{Answer: always("\x01\xff{}: OK\x00", false)}), well, true, "error"},
		{"endless garbage", do(Misbehaviour{Answer: always(strings.Repeat("OK ", 1<<16), false)}), well, true, "error"},
		{"another's answer", do(Misbehaviour{Answer: always("1000000: fd[7]: OK\x00", false)}), well, true, "error"},
		{"descriptors refused", do(Misbehaviour{Answer: func(plain string) (string, bool) {
			id, _, _ := strings.Cut(plain, ":")
			return id + ": No file descriptor received. ERROR\x00", true
		}}), well, true, "error"},
		{"connection limit", func(*testing.T) { clamd.Do(Misbehaviour{Most: 1}); clamd.HangUp() }, well, true, "error"},
		{"gone", func(*testing.T) { clamd.Die() }, func(*testing.T) { clamd.Listen() }, true, "error"},
	}
}

// TestScannerFaults: while a scanner fails in one way or another under a load, every
// opener has its answer by the deadline, nothing bad is read, and when it has recovered
// so has the gate.
func TestScannerFaults(t *testing.T) {
	clamd := StartClamd(t, suite)
	for _, m := range ofFake(clamd) {
		t.Run(m.name, func(t *testing.T) { suffer(t, clamd.Socket, m) })
	}
}

// TestRealScannerFaults is TestScannerFaults with the real clamd.
func TestRealScannerFaults(t *testing.T) {
	name, body := harness.ClamSignature()
	signature := clamdtest.Signature{Name: name, Content: body}
	clamd := clamdtest.Start(t, clamdtest.Options{Signatures: []clamdtest.Signature{signature}})
	tell := func(sig syscall.Signal) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			if err := syscall.Kill(clamd.PID(), sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	reload := func(t *testing.T) { t.Helper(); clamd.ReplaceDatabase(t, signature) }
	for _, m := range []misfortune{
		{"killed", func(t *testing.T) { t.Helper(); clamd.Kill(t) }, func(t *testing.T) { t.Helper(); clamd.Restart(t) }, true, "error"},
		{"hung", tell(syscall.SIGSTOP), tell(syscall.SIGCONT), true, "timeout"},
		{"reloading", reload, reload, false, ""},
	} {
		t.Run(m.name, func(t *testing.T) { suffer(t, clamd.Socket(), m) })
	}
}

// suffer runs a load while a scanner suffers a misfortune and after it.
func suffer(t *testing.T, socket string, m misfortune) {
	t.Helper()
	agent := suite.StartAgent(t, clamdConfig(socket))
	before := agent.Status(t)
	run := clamLoad(6).Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 120)

	from := Now()
	m.begin(t)
	awaitEach(t, run, from, 4)
	if stuck := run.Stuck(t, deadline+margin); len(stuck) > 0 {
		t.Errorf("openers hang: %+v", stuck)
	}
	m.end(t)
	to := Now()
	awaitRecovery(t, agent, run)

	suffered := run.Report(t, from, to)
	if m.paid == (suffered.Clean.Refused == 0) {
		t.Errorf("the misfortune is said to cost clean openers something (%t): %v", m.paid, suffered)
	}
	report := run.Stop(t)
	wantGuarded(t, report)
	if report.Longest > deadline+margin {
		t.Errorf("an opener waited for %v, with a deadline of %v", report.Longest, deadline)
	}
	agent.AwaitIdle(t)
	wantBooked(t, agent, before, report)
	if m.paid && agent.Status(t).Reason("default", m.reason) == 0 {
		t.Errorf("nothing was answered for %q: %+v", m.reason, agent.Status(t).Tenants)
	}
}

// awaitEach waits until every process of the load has ended n opens that began after
// from.
func awaitEach(t *testing.T, run *Run, from int64, n int) {
	t.Helper()
	await(t, "each process opens on", startPatience, func() error {
		for number, log := range run.read(t) {
			began := slices.IndexFunc(log.opens, func(o open) bool { return o.start >= from })
			if began < 0 || len(log.opens)-began < n {
				return fmt.Errorf("process %d has not made %d opens", number, n)
			}
		}
		return nil
	})
}

// awaitRecovery waits until what is clean is read again, by every process.
func awaitRecovery(t *testing.T, agent *harness.Agent, run *Run) {
	t.Helper()
	harness.Eventually(t, "clean files are readable again", func() error {
		if s := agent.Status(t); len(s.Scanners) > 0 && !s.Scanners[0].Healthy {
			return errors.New(s.Scanners[0].Error)
		}
		from := Now()
		awaitEach(t, run, from, 8)
		if report := run.Report(t, from, 0); report.Clean.Refused > 0 {
			return fmt.Errorf("%v", report)
		}
		return nil
	})
}

// wantBooked fails t unless the agent's counters tell what the load experienced: as many
// refusals, and a reason for every answer.
func wantBooked(t *testing.T, agent *harness.Agent, before harness.Status, report Report) {
	t.Helper()
	s := agent.Status(t)
	tenant := s.Tenants[0]
	if got := s.Denied() - before.Denied(); got != uint64(report.Total.Refused) { //nolint:gosec // a count
		t.Errorf("the agent has refused %d opens, and the load was refused %d", got, report.Total.Refused)
	}
	var reasons uint64
	for _, n := range tenant.Reasons {
		reasons += n
	}
	if reasons != tenant.Allowed+tenant.Denied {
		t.Errorf("%d answers have a reason, %d were allowed and %d denied", reasons, tenant.Allowed, tenant.Denied)
	}
}

// TestDatabaseUpdatedDuringScans: what a scanner learns while it scans counts from the
// next open on, also for files that are opened all the time.
func TestDatabaseUpdatedDuringScans(t *testing.T) {
	name, body := harness.ClamSignature()
	known := clamdtest.Signature{Name: name, Content: body}
	clamd := clamdtest.Start(t, clamdtest.Options{Signatures: []clamdtest.Signature{known}})
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket()))
	load := clamLoad(6)
	load.Kinds = []string{Clean, Fresh, Rewritten}
	load.CleanFiles = []string{harness.CleanFile}
	run := load.Start(t, suite, suite.Runc(), agent.Gate(""))
	run.Await(t, 0, 120)

	clamd.ReplaceDatabase(t, known, clamdtest.Signature{Name: "Assay.Test.News", Content: []byte(harness.CleanText)})
	harness.Eventually(t, "the file that clamd has learned of is refused", func() error {
		from := Now()
		awaitEach(t, run, from, 3)
		if report := run.Report(t, from, 0); report.Clean.Refused == 0 {
			return fmt.Errorf("%v", report)
		}
		return nil
	})
	// From the first refusal on it is never read again, and everything else is.
	from := Now()
	awaitEach(t, run, from, 12)
	var read, others atomic.Int64
	for _, log := range run.read(t) {
		for _, o := range log.opens {
			switch {
			case o.start < from || o.bad:
			case o.kind == Clean && o.errno == 0:
				read.Add(1)
			case o.kind != Clean && o.errno != 0:
				others.Add(1)
			}
		}
	}
	if read.Load() > 0 || others.Load() > 0 {
		t.Errorf("after the update the file was read %d times, and %d opens of others were refused", read.Load(), others.Load())
	}
	wantGuarded(t, run.Stop(t))
	if r := agent.AwaitDenied(t, harness.CleanFile); !strings.HasPrefix(r.Signature(), "Assay.Test.News") {
		t.Errorf("refused for %q", r.Signature())
	}
}
