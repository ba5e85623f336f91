package fault

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/assay-project/assay/e2e/harness"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

const (
	// soak is how long TestSoak takes unless ASSAY_SOAK says otherwise.
	soak = time.Minute
	// turn is how long containers are at work until the agent is looked at.
	turn = 8 * time.Second
	// spareMemory is what the agent's memory may grow by: what it keeps is bounded by
	// its configuration, and Go gives back what it does not need with some delay.
	spareMemory = 48 << 20
)

// soaked is what happens to an agent in a turn of TestSoak.
type soaked struct {
	agent *harness.Agent
	clamd *clamdtest.Instance
	list  string
	turns int
}

// TestSoak: containers come and go, files are opened, written and marked, scanners learn
// and the configuration is reloaded; whenever all containers are gone, so is everything
// that the agent took for them.
func TestSoak(t *testing.T) {
	length := soak
	if text := os.Getenv("ASSAY_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := &soaked{clamd: clamdtest.Start(t, clamdtest.Options{}), list: suite.AnyHash(t)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("clamd's log:\n%s", s.clamd.Log())
		}
	})
	s.agent = suite.StartAgent(t, s.config())
	s.turn(t) // what is kept for good, connections and such, is there after this
	before := Take(t, s.agent)
	t.Logf("turn 1: %v", before)
	for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
		s.turn(t)
		wantBaseline(t, s.agent, before)
		now := Take(t, s.agent)
		t.Logf("turn %d: %v", s.turns, now)
		if now.RSS > before.RSS+spareMemory {
			t.Errorf("the agent's memory has grown from %d MiB to %d MiB", before.RSS>>20, now.RSS>>20)
		}
	}
}

// config returns a configuration that differs from turn to turn. What is remembered is
// bounded so that it is at its bound soon.
func (s *soaked) config() string {
	return "cache: {memory: 4MiB, disk: 4MiB}\n" + harness.HashScanner(s.list) + clamdOnly(s.clamd.Socket()) + "tenants:\n" +
		harness.Tenant("default", "{}", "hashes, clamav", "kernelMarks: all", fmt.Sprintf("deadline: %ds", 20+s.turns%2))
}

// turn has containers at work, changes all that can be changed meanwhile, and returns
// when they are gone and the agent is idle.
func (s *soaked) turn(t *testing.T) {
	t.Helper()
	s.turns++
	engines := []harness.Engine{suite.Runc(), suite.Runc()}
	if s.turns%4 == 0 {
		engines = append(engines, suite.Podman("crun"))
	}
	var runs []*Run
	for _, engine := range engines {
		runs = append(runs, Load{Processes: 3, Pause: 3 * time.Millisecond}.Start(t, suite, engine, s.agent.Gate("")))
	}
	harness.Eventually(t, "there is something to leak", func() error {
		if busy := Take(t, s.agent); busy.Marks == 0 || busy.Leases == 0 {
			return fmt.Errorf("%v", busy)
		}
		return nil
	})
	end := time.NewTimer(turn)
	defer end.Stop()
	from := Now()
	for s.change(t); ; s.comeAndGo(t) {
		select {
		case <-end.C:
		default:
			continue
		}
		break
	}
	for _, run := range runs {
		awaitEach(t, run, from, 20)
		report := run.Stop(t)
		wantGuarded(t, report)
		if report.Clean.Refused > 0 {
			t.Errorf("clean files were refused: %v", report)
		}
	}
	s.agent.AwaitIdle(t)
	harness.Eventually(t, "the agent is well", func() error {
		if status := s.agent.Status(t); !status.Healthy {
			return fmt.Errorf("problems %q", status.Problems)
		}
		return nil
	})
}

// change gives both scanners a new generation and the agent a new configuration.
func (s *soaked) change(t *testing.T) {
	t.Helper()
	s.clamd.ReplaceDatabase(t, clamdtest.Default())
	file, err := os.OpenFile(s.list, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(harness.HashLine(fmt.Append(nil, s.turns), "Assay.Test.Soak"))
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if status := s.agent.Reload(t, s.config()); status.ReloadError != "" {
		t.Errorf("reload: %s", status.ReloadError)
	}
}

// comeAndGo runs a container that writes to what is marked in it.
func (s *soaked) comeAndGo(t *testing.T) {
	t.Helper()
	script := `for i in 1 2 3 4 5 6; do guest read /data/clean.txt; done; ` +
		`printf '%s%s' "$1" "$2" > /data/clean.txt; guest read /data/clean.txt`
	first, second := harness.EICARHalves()
	r := suite.Runc().Run(t, harness.Spec{Args: []string{"sh", "-c", script, "sh", first, second}, Gate: s.agent.Gate("")})
	want := ""
	for range 6 {
		want += harness.CleanFile + ": 13 bytes\n"
	}
	if want += harness.CleanFile + ": EPERM\n"; r.Stdout != want {
		t.Errorf("want six reads and a refusal: %s", r)
	}
}
