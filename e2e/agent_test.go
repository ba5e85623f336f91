package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestAgentAbsent: without an agent a container does not start, unless its hook
// was told otherwise.
func TestAgentAbsent(t *testing.T) {
	nobody := filepath.Join(suite.Scratch(t), "agent.sock")
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			args := []string{"echo", pwned}
			r := e.Run(t, harness.Spec{Args: args, Gate: &harness.Gate{Socket: nobody, Wait: "0"}})
			wantRefused(t, r, pwned)
			if strings.HasPrefix(e.Name(), "podman") && r.Code != 126 && r.Code != 127 {
				t.Errorf("podman ended with %d, want 126 or 127", r.Code)
			}
			r = e.Run(t, harness.Spec{Args: args, Gate: &harness.Gate{Socket: nobody, OnAgentMissing: "allow", Wait: "0"}})
			if r.Code != 0 || r.Stdout != pwned+"\n" {
				t.Errorf("want the container to start with --on-agent-missing allow: %s", r)
			}
		})
	}
}

// TestAgentReplaced: a container that is started while there is no agent, neither
// with a socket nor without, starts when there is one, and is guarded.
func TestAgentReplaced(t *testing.T) {
	for _, end := range []struct {
		name string
		how  func(*harness.Agent, testing.TB)
	}{{"stopped", (*harness.Agent).Stop}, {"killed", (*harness.Agent).Kill}} {
		for _, e := range suite.Engines() {
			t.Run(end.name+"/"+e.Name(), func(t *testing.T) {
				agent := suite.StartAgent(t, suite.Hashes(t))
				end.how(agent, t)
				gate := agent.Gate("")
				gate.Wait = "25s"
				ran := make(chan harness.Result, 1)
				go func() {
					defer close(ran)
					ran <- e.Run(t, harness.Spec{Args: everyRead(), Gate: gate})
				}()
				awaitHook(t, agent.Socket)
				agent.Restart(t)
				wantEveryRead(t, <-ran)
				agent.AwaitDenied(t, harness.BadFile)
			})
		}
	}
}

// awaitHook waits until a hook runs that is to announce a container at the socket.
func awaitHook(t *testing.T, socket string) {
	t.Helper()
	harness.Eventually(t, "the hook runs", func() error {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			text, readErr := os.ReadFile(file) // the process may be gone by now
			args := strings.Split(string(text), "\x00")
			if readErr == nil && slices.Contains(args, socket) && filepath.Base(args[0]) == "assay-hook" {
				return err
			}
		}
		return errors.Join(err, errors.New("no such process"))
	})
}

// TestCheckConfiguration: --check judges a file without starting anything.
func TestCheckConfiguration(t *testing.T) {
	file := filepath.Join(suite.Scratch(t), "assay.yaml")
	tests := []struct {
		name, text string
		code       int
		says       string
	}{
		{"good", suite.Hashes(t), 0, ""},
		{"unknown key", suite.Hashes(t, "colour: red"), 2, "assay.yaml:"},
		{"unknown scanner", "tenants:\n" + harness.Tenant("default", "{}", "nobody"), 2, "nobody"},
		{"path pattern", suite.Hashes(t, "exclude: {paths: [/tmp/*]}"), 2, "assay.yaml:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := harness.Command(t, suite.Bin("assayd"), "--config", file, "--check")
			if r.Code != tt.code || !strings.Contains(r.Stderr, tt.says) {
				t.Errorf("want exit code %d and %q: %s", tt.code, tt.says, r)
			}
		})
	}
}

// TestCheckFile: the agent judges a file that a program passes to it.
func TestCheckFile(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	dir := suite.HostDirectory(t, map[string][]byte{"bad": harness.EICAR(), "good": []byte("good\n")})
	if r := agent.CLI(t, "-o", "json", "check", filepath.Join(dir, "good")); r.Code != 0 || !strings.Contains(r.Stdout, `"clean"`) {
		t.Errorf("a clean file: %s", r)
	}
	if r := agent.CLI(t, "-o", "json", "check", filepath.Join(dir, "bad")); r.Code != 1 || !strings.Contains(r.Stdout, `"malicious"`) {
		t.Errorf("a malicious file: %s", r)
	}
	nobody := &harness.Gate{Socket: filepath.Join(dir, "agent.sock")}
	r := harness.Command(t, suite.Bin("assay"), "--socket", nobody.Socket, "check", filepath.Join(dir, "good"))
	if r.Code != 3 {
		t.Errorf("without an agent: want exit code 3: %s", r)
	}
}

// TestHookRefusesNonsense: the hook stops a container that it cannot announce.
func TestHookRefusesNonsense(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	tests := []struct{ name, stdin, stage string }{
		{"no state", "", "createRuntime"},
		{"no JSON", "hello", "createRuntime"},
		{"half of it", `{"ociVersion": "1.0.2", "id": "x", "pid": 1`, "createRuntime"},
		{"pid gone", `{"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 4194300, "bundle": "/"}`, "createRuntime"},
		{"unknown stage", `{}`, "createSandwich"},
		{"stage without a pid", `{}`, "createContainer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			script := `printf '%s' "$1" | "$2" --socket "$3" "$4"`
			r := harness.Command(t, "sh", "-c", script, "sh", tt.stdin, suite.Bin("assay-hook"), agent.Socket, tt.stage)
			if r.Code == 0 || r.Stderr == "" || r.Hung {
				t.Errorf("want a refusal that says why: %s", r)
			}
		})
	}
	if s := agent.Status(t); len(s.Containers) != 0 {
		t.Errorf("the agent guards %+v, want nothing", s.Containers)
	}
}
