package fault

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
)

const (
	flooders    = 200
	floodOpens  = 100_000
	memoryBound = 256 << 20 // bytes of memory that the agent may have had in a flood
)

// TestFlood: a tenant that opens files from many processes at once gets an answer to
// each open, without the agent growing, and another tenant's container has its answers
// meanwhile.
func TestFlood(t *testing.T) {
	list := suite.AnyHash(t)
	agent := suite.StartAgent(t, harness.HashScanner(list)+"tenants:\n"+
		harness.Tenant("flooding", "{namespaces: [a]}", "hashes", "deadline: "+deadline.String())+
		harness.Tenant("quiet", "{namespaces: [b]}", "hashes"))
	quiet := Load{Processes: 2, Pause: 5 * time.Millisecond}.Start(t, suite, suite.Runc(), agent.Gate("b"))
	quiet.Await(t, 0, 300)
	alone := quiet.Report(t, 0, 0)

	flood := Load{
		Processes: flooders, Opens: floodOpens / flooders, Held: true,
		Kinds: []string{Clean, Clean, Clean, Bad, Clean, Clean, Fresh, Rewritten},
	}.Start(t, suite, suite.Runc(), agent.Gate("a"))
	from := Now()
	flood.Go(t)
	report := flood.Wait(t)
	to := Now()
	during := quiet.Report(t, from, to)
	all := quiet.Stop(t)

	wantGuarded(t, report)
	wantGuarded(t, all)
	wantPrompt(t, report)
	wantPrompt(t, all)
	if report.Total.Opens < floodOpens {
		t.Errorf("%d opens were made, want %d", report.Total.Opens, floodOpens)
	}
	if all.Clean.Refused > 0 {
		t.Errorf("the quiet tenant paid: %v", all)
	}
	if most := highWater(t, agent); most > memoryBound {
		t.Errorf("the agent had %d MiB of memory, want no more than %d", most>>20, memoryBound>>20)
	}
	t.Logf("flood of %d opens in %v: %v", report.Total.Opens, time.Duration(to-from), report)
	t.Logf("quiet tenant's p99: %v alone, %v in the flood (%d opens); the agent's memory %d MiB",
		alone.Percentile(0.99), during.Percentile(0.99), during.Total.Opens, highWater(t, agent)>>20)
	agent.AwaitIdle(t)
}

// containers is how many start together; ASSAY_FAULT_CONTAINERS says otherwise.
const containers = 50

// TestManyContainers: containers that start together are all guarded from their first
// open on, and leave nothing behind.
func TestManyContainers(t *testing.T) {
	n := containers
	if text := os.Getenv("ASSAY_FAULT_CONTAINERS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	agent := suite.StartAgent(t, anyHash(t))
	suite.Image(t) // built before the race
	before := Take(t, agent)
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			r := suite.Runc().Run(t, harness.Spec{Args: []string{"guest", "read", harness.CleanFile, harness.BadFile}, Gate: agent.Gate("")})
			if want := harness.CleanFile + ": 13 bytes\n" + harness.BadFile + ": EPERM\n"; r.Stdout != want {
				t.Errorf("want %q: %s", want, r)
			}
		})
	}
	all.Wait()
	agent.AwaitIdle(t)
	if got := agent.Status(t).Reason("default", "malicious"); got != uint64(n) { //nolint:gosec // a count
		t.Errorf("%d opens were refused for being malicious, want %d", got, n)
	}
	wantBaseline(t, agent, before)
}

// TestDeafSubscriber: a reader of records that does not read delays nobody, and neither
// the agent's memory nor its other readers pay for it.
func TestDeafSubscriber(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	said := filepath.Join(suite.HostDirectory(t, map[string][]byte{"said": nil}), "said")
	script := `exec "$@" 2>"$SAID"`
	deaf := exec.Command("sh", "-c", script, "sh", suite.Bin("assay"), "--socket", agent.Socket, "-o", "json", "events", "--follow")
	deaf.Env = append(os.Environ(), "SAID="+said)
	out, err := deaf.StdoutPipe() // which nobody reads
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = deaf.Process.Kill()
		_, _ = io.Copy(io.Discard, out)
		_ = deaf.Wait() // killed
	})
	harness.Eventually(t, "both subscribers are there", func() error {
		if n := agent.Status(t).Records.Subscribers; n != 2 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if err := deaf.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}

	const opens = 12_000 // twice what is kept, and what the socket and the pipe hold
	run := Load{Processes: 4, Opens: opens / 4}.Start(t, suite, suite.Runc(), agent.Gate(""))
	report := run.Wait(t)
	wantGuarded(t, report)
	wantPrompt(t, report)
	if report.Clean.Refused > 0 {
		t.Errorf("clean files were refused: %v", report)
	}
	if most := highWater(t, agent); most > memoryBound {
		t.Errorf("the agent had %d MiB of memory", most>>20)
	}

	// It hears in the end what it has missed.
	if err := deaf.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	harness.Eventually(t, "the deaf subscriber learns that it has missed records", func() error {
		text, err := os.ReadFile(said)
		if err == nil && !strings.Contains(string(text), "records were overwritten") {
			err = fmt.Errorf("it says %q", text)
		}
		return err
	})
	if s := agent.Status(t); s.Records.LostToSubscribers == 0 {
		t.Errorf("no record was lost to a reader that did not read: %+v", s.Records)
	}
	agent.AwaitIdle(t)
}
