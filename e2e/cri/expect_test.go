package cri

import (
	"errors"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// reads returns the arguments of a program whose first act is to open and read the bad
// file of the test image, and then a clean one.
func reads() []string { return []string{"guest", "read", harness.BadFile, harness.CleanFile} }

// idle returns the arguments of a program that does nothing.
func idle() Spec { return Spec{Args: []string{"sleep", "1000"}} }

// wantRead fails t unless a program has printed these lines, and nothing else.
func wantRead(t *testing.T, what string, r harness.Result, lines ...string) {
	t.Helper()
	want := strings.Join(lines, "\n") + "\n"
	if r.Stdout != want || r.Hung {
		t.Errorf("%s: want\n%sgot %s", what, want, r)
	}
}

// wantGated fails t unless reads() has been refused the bad file, and nothing else.
func wantGated(t *testing.T, what string, r harness.Result) {
	t.Helper()
	wantRead(t, what, r, harness.BadFile+": EPERM", harness.CleanFile+": 13 bytes")
}

// wantGuarded fails t unless a running container is refused the bad file, and the agent
// says that it guards it.
func wantGuarded(t *testing.T, what string, agent *harness.Agent, c *Container) {
	t.Helper()
	wantGated(t, what, c.Exec(t, reads()...))
	if !Guards(t, agent, c.ID()) {
		t.Errorf("%s: the agent does not list container %s with marks", what, c.ID())
	}
}

// wantNothingThrough fails t if the kernel has let through an open of a bad file.
func wantNothingThrough(t *testing.T, what string, o *Observer) {
	t.Helper()
	if through := o.Through(t); len(through) > 0 {
		t.Errorf("%s: %d opens of bad files were let through: %+v", what, len(through), through)
	}
}

// eventuallyGuards waits until the agent says that it guards a container, as it does with
// those that it finds when it connects.
func eventuallyGuards(t *testing.T, agent *harness.Agent, c *Container) {
	t.Helper()
	harness.Eventually(t, "the agent guards "+c.Name, func() error {
		if !Guards(t, agent, c.ID()) {
			return errors.New("it does not list it with marks")
		}
		return nil
	})
}

// denied returns what recognises the record of a container's denied open of the bad file.
func denied(c *Container) func(harness.Record) bool {
	return func(r harness.Record) bool {
		return r.Container.ID == c.ID() && r.Path == harness.BadFile && r.Decision == "deny" && r.Reason == "malicious"
	}
}
