package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

// A stepper is a container whose shell stops at "read go < /vol/go1" until step
// lets it go on, then at go2, and so on. Between two steps it uses nothing but
// builtins, so that the only files it opens are those that its script names.
type stepper struct {
	dir    string // /vol on the host
	steps  int    // that were made
	result <-chan harness.Result
}

// maxSteps is how many steps a stepper can make. Each has a FIFO of its own: a
// shell that is quick would find the last step's still open.
const maxSteps = 3

// newStepper makes a stepper's directory on the host, with files in it.
func newStepper(t *testing.T, files map[string][]byte) *stepper {
	t.Helper()
	s := &stepper{dir: suite.HostDirectory(t, files)}
	for i := range maxSteps {
		if err := syscall.Mkfifo(s.fifo(i+1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *stepper) fifo(step int) string { return filepath.Join(s.dir, fmt.Sprintf("go%d", step)) }

// bind returns the directory's place in the container.
func (s *stepper) bind() []harness.Bind {
	return []harness.Bind{{Source: s.dir, Destination: "/vol"}}
}

// startStepper runs script in the background; files are in /vol from the start.
func startStepper(t *testing.T, agent *harness.Agent, script string, files map[string][]byte) *stepper {
	t.Helper()
	s := newStepper(t, files)
	result := make(chan harness.Result, 1)
	s.result = result
	go func() {
		result <- suite.Runc().Run(t, harness.Spec{Args: []string{"sh", "-c", script}, Gate: agent.Gate(""), Binds: s.bind()})
	}()
	return s
}

// await waits until the shell stands at the next FIFO and returns the FIFO, open;
// to write to it lets the shell go on.
func (s *stepper) await(t *testing.T) *os.File {
	t.Helper()
	s.steps++
	var fifo *os.File
	harness.Eventually(t, fmt.Sprintf("the container's shell waits before step %d", s.steps), func() error {
		var err error
		fifo, err = os.OpenFile(s.fifo(s.steps), os.O_WRONLY|syscall.O_NONBLOCK, 0)
		return err
	})
	return fifo
}

// step waits for the shell, runs meanwhile, and lets the shell go on.
func (s *stepper) step(t *testing.T, meanwhile ...func()) {
	t.Helper()
	fifo := s.await(t)
	for _, f := range meanwhile {
		f()
	}
	_, err := fifo.WriteString("go\n")
	if err = errors.Join(err, fifo.Close()); err != nil {
		t.Fatal(err)
	}
}

// stepWithout lets the shell go on after clamd has been stopped: whatever it
// opens next waits.
func (s *stepper) stepWithout(t *testing.T, clamd *clamdtest.Instance) {
	t.Helper()
	s.step(t, func() { signal(t, clamd, syscall.SIGSTOP) })
}

// awaitWaiting waits until the agent owes somebody an answer.
func awaitWaiting(t *testing.T, agent *harness.Agent) {
	t.Helper()
	harness.Eventually(t, "an opener waits for the scanner", func() error {
		if s := agent.Status(t); s.Waiting() == 0 {
			return fmt.Errorf("no event is being scanned: %+v", s.Tenants)
		}
		return nil
	})
}

// awaitAnswered waits until the agent owes nobody an answer.
func awaitAnswered(t *testing.T, agent *harness.Agent) {
	t.Helper()
	harness.Eventually(t, "every event is answered", func() error {
		if n := agent.Status(t).Waiting(); n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
}

// wantNothingHeld fails t unless the agent comes to guard nothing, owe nothing and
// have no more descriptors than before.
func wantNothingHeld(t *testing.T, agent *harness.Agent, before int) {
	t.Helper()
	agent.AwaitIdle(t)
	harness.Eventually(t, "the agent closes what it opened", func() error {
		if now := agent.Descriptors(t); len(now) > before {
			return fmt.Errorf("%d descriptors, %d before:\n%s", len(now), before, strings.Join(now, "\n"))
		}
		return nil
	})
}

// TestScannerHangs: a clamd that does not answer costs an opener the deadline,
// then onTimeout decides.
func TestScannerHangs(t *testing.T) {
	for _, tt := range []struct{ action, decision, want string }{{"deny", "deny", "refused\n"}, {"allow", "allow", "read\n"}} {
		t.Run(tt.action, func(t *testing.T) {
			clamd := startClamd(t)
			agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "onError: deny", "onTimeout: "+tt.action, "deadline: 2s"))
			s := startStepper(t, agent, `read go < /vol/go1
				if read line < /data/many/01; then echo read; else echo refused; fi 2>/dev/null`, nil)
			s.stepWithout(t, clamd)
			if r := <-s.result; r.Stdout != tt.want {
				t.Errorf("want %q: %s", tt.want, r)
			}
			agent.AwaitRecord(t, "the file whose scan timed out", func(r harness.Record) bool {
				return r.Path == "/data/many/01" && r.Decision == tt.decision && r.Reason == "timeout"
			})
		})
	}
}

// TestOpenerKilled: an opener that is killed while it waits dies at once, and
// nothing of its event stays behind.
func TestOpenerKilled(t *testing.T) {
	clamd := startClamd(t)
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "deadline: 60s"))
	// The first containers let the agent open all the connections that it keeps.
	suite.Runc().Run(t, harness.Spec{Args: []string{"true"}, Gate: agent.Gate("")})
	agent.AwaitIdle(t)
	before := len(agent.Descriptors(t))

	s := startStepper(t, agent, `read go < /vol/go1
		(read line < /data/many/02) &
		opener=$!
		read go < /vol/go2
		kill -9 $opener
		wait $opener
		code=$?
		read go < /vol/go3
		echo killed $code`, nil)
	s.stepWithout(t, clamd)
	awaitWaiting(t, agent)
	s.step(t)
	s.step(t, func() {
		// The opener is dead although clamd sleeps. Only now does clamd have to go:
		// the descriptor that it was passed would keep the root filesystem busy.
		clamd.Kill(t)
		awaitAnswered(t, agent)
	})
	if r := <-s.result; r.Stdout != "killed 137\n" {
		t.Errorf("want the opener to die of SIGKILL: %s", r)
	}
	wantNothingHeld(t, agent, before)
}

// TestContainerKilled: a container whose process waits for an answer can be
// killed and is let go of.
func TestContainerKilled(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			clamd := startClamd(t)
			agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "deadline: 60s"))
			e.Run(t, harness.Spec{Args: []string{"true"}, Gate: agent.Gate("")})
			agent.AwaitIdle(t)
			before := len(agent.Descriptors(t))
			s := newStepper(t, nil)
			c := e.Start(t, harness.Spec{
				Args: []string{"sh", "-c", "read go < /vol/go1; read line < /data/many/03; sleep 1000"},
				Gate: agent.Gate(""), Binds: s.bind(),
			})
			s.stepWithout(t, clamd)
			awaitWaiting(t, agent)
			c.Kill(t)
			agent.AwaitIdle(t) // although clamd sleeps
			// The descriptor that clamd was passed keeps the root filesystem busy.
			clamd.Kill(t)
			c.Remove(t)
			wantNothingHeld(t, agent, before)
		})
	}
}

// TestFileChangesDuringScan: a file that shrinks or goes away while it is scanned
// gets its opener an answer, whichever, and leaves the agent in good health.
func TestFileChangesDuringScan(t *testing.T) {
	tests := []struct {
		name   string
		change func(path string) error
	}{
		{"truncated", func(path string) error { return os.Truncate(path, 0) }},
		{"removed", os.Remove},
		{"replaced", func(path string) error { return os.Rename(path+".new", path) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clamd := startClamd(t)
			agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "deadline: 60s"))
			big := make([]byte, 4<<20)
			s := startStepper(t, agent, `read go < /vol/go1
				read line < /vol/big
				echo answered`, map[string][]byte{"big": big, "big.new": []byte("new\n")})
			s.stepWithout(t, clamd)
			awaitWaiting(t, agent)
			if err := tt.change(filepath.Join(s.dir, "big")); err != nil {
				t.Fatal(err)
			}
			signal(t, clamd, syscall.SIGCONT)
			if r := <-s.result; r.Stdout != "answered\n" {
				t.Errorf("want an answer: %s", r)
			}
			agent.AwaitRecord(t, "the file that changed", func(r harness.Record) bool {
				return strings.HasPrefix(r.Path, "/vol/big") && r.Source == "scan"
			})
			agent.AwaitIdle(t)
			if s := agent.Status(t); !s.Healthy {
				t.Errorf("the agent is not well: %q", s.Problems)
			}
		})
	}
}
