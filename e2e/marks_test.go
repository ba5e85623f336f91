package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// startMarked starts a container that opens the clean file until the kernel answers
// for the agent.
func startMarked(t *testing.T, agent *harness.Agent, e harness.Engine) harness.Container {
	t.Helper()
	c := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	openUntilMarked(t, agent, c, harness.CleanFile, harness.CleanText)
	return c
}

// openUntilMarked has a container open a file many times, until the kernel answers for
// the agent. A wish for a mark that could not be granted is not repeated for seconds.
func openUntilMarked(t *testing.T, agent *harness.Agent, c harness.Container, path, text string) {
	t.Helper()
	const times = 9
	loop := []string{"sh", "-c", `for i in 1 2 3 4 5 6 7 8 9; do cat "$0" || exit 1; done`, path}
	harness.Eventually(t, path+" is marked", func() error {
		if r := c.Exec(t, loop...); r.Stdout != strings.Repeat(text, times) {
			t.Fatalf("want %s %d times: %s", path, times, r)
		}
		if e := agent.Explain(t, c, path); e.Mark.State != "marked" || e.Mark.Lease != "held" {
			return fmt.Errorf("its mark is %+v, its layer %+v, and of all marks %+v", e.Mark, e.Layer, agent.Status(t).Marks)
		}
		return nil
	})
}

// TestMarkedFileTurnsBad: a file that the kernel answers for is refused at the first
// open after its content has turned, and the writing is on record once.
func TestMarkedFileTurnsBad(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t))
			c := startMarked(t, agent, e)
			before := agent.Status(t)
			if before.Marks.Now < 1 || before.Tenants[0].Marks < 1 {
				t.Errorf("no mark is counted: %+v", before.Marks)
			}
			if e := agent.Explain(t, c, harness.CleanFile); e.Mark.Lease != "held" || e.Open.Source != "kernel" || e.Open.Decision != "allow" || !e.Layer.Pristine {
				t.Errorf("want a pristine file that the kernel allows under a lease: %+v", e)
			}

			r := c.Exec(t, harness.WriteEICAR(harness.CleanFile, `guest read "$1"; guest read "$1"`)...)
			wantRead(t, r, harness.CleanFile+": EPERM", harness.CleanFile+": EPERM")
			wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile), harness.CleanFile+": EPERM")

			agent.AwaitDenied(t, harness.CleanFile)
			wantDirtyOnce(t, agent, c, harness.CleanFile)
			if e := agent.Explain(t, c, harness.CleanFile); e.Mark.State != "none" || e.Mark.Lease != "none" || e.Layer.Pristine || e.Layer.Reason != "overlaid" {
				t.Errorf("want no mark, and a file of the container's own: %+v", e)
			}
			if s := agent.Status(t); s.Marks.Broken != before.Marks.Broken+1 {
				t.Errorf("%d leases were broken, %d before the write", s.Marks.Broken, before.Marks.Broken)
			}
			// Another container has the layer's file, which is as clean as it was.
			wantRead(t, e.Run(t, harness.Spec{Args: []string{"guest", "read", harness.CleanFile}, Gate: agent.Gate("")}),
				harness.CleanFile+": 13 bytes")
			c.Kill(t)
			c.Remove(t)
		})
	}
}

// wantDirtyOnce fails t unless the container's file is on record once for having been
// opened for writing.
func wantDirtyOnce(t *testing.T, agent *harness.Agent, c harness.Container, path string) {
	t.Helper()
	dirty := func(r harness.Record) bool { return r.Op == "dirty" && r.Path == path && r.Container.ID == c.ID() }
	record := agent.AwaitRecord(t, path+" becoming dirty", dirty)
	if record.Decision != "" || record.PID == 0 && record.Verdict != "" {
		t.Errorf("a record of no request has a decision or a verdict: %+v", record)
	}
	if n := agent.CountRecords(dirty); n != 1 {
		t.Errorf("%d records of %s becoming dirty, want 1", n, path)
	}
	if r := agent.CLI(t, "events", "--op", "dirty"); strings.Count(r.Stdout, path) != 1 {
		t.Errorf("want one line of %s: %s", path, r)
	}
}

// TestMarkedForWriting: every way to change a marked file of the container's own is
// noticed, also a writer who does not want to wait.
func TestMarkedForWriting(t *testing.T) {
	const own = "/data/own.txt"
	for _, write := range []struct{ name, script string }{
		{"truncated", `printf '%s%s' "$2" "$3" > "$1"`},
		{"in place", `printf '%s%s' "$2" "$3" | dd of="$1" conv=notrunc 2>/dev/null`},
		{"appended to nothing", `true > "$1"; printf '%s%s' "$2" "$3" >> "$1"`},
		{"without waiting", `printf '%s%s' "$2" "$3" | guest write-nonblock "$1" >/dev/null`},
		{"renamed over", `printf '%s%s' "$2" "$3" > /data/new; mv /data/new "$1"`},
		{"through a mapping", `printf '%s%s' "$2" "$3" | guest write-mapped "$1"`},
	} {
		t.Run(write.name, func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t, "kernelMarks: all"))
			c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			first, second := harness.EICARHalves()
			// As long as EICAR, so that writing in place leaves EICAR and nothing else.
			text := strings.Repeat("clean", len(harness.EICAR()))[:len(harness.EICAR())]
			if r := c.Exec(t, "sh", "-c", `printf %s "$2" > "$1"`, "sh", own, text); r.Code != 0 {
				t.Fatal(r)
			}
			openUntilMarked(t, agent, c, own, text)
			r := c.Exec(t, "sh", "-c", write.script+` || echo failed; guest read "$1"`, "sh", own, first, second)
			wantRead(t, r, own+": EPERM")
			wantRead(t, c.Exec(t, "guest", "read", own), own+": EPERM")
			c.Kill(t)
			c.Remove(t)
		})
	}
}

// TestMarkedNonBlockingWriter: whoever opens a marked file for writing and does not want
// to wait is told EAGAIN, and gets in when it tries again.
func TestMarkedNonBlockingWriter(t *testing.T) {
	for _, e := range []harness.Engine{suite.Podman("crun"), suite.Runc()} {
		t.Run(e.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t))
			c := startMarked(t, agent, e)
			first, second := harness.EICARHalves()
			r := c.Exec(t, "sh", "-c", `printf '%s%s' "$2" "$3" | guest write-nonblock "$1" && guest read "$1"`, "sh", harness.CleanFile, first, second)
			wantRead(t, r, "EAGAIN, then open", harness.CleanFile+": EPERM")
			wantDirtyOnce(t, agent, c, harness.CleanFile)
		})
	}
}

// TestReleaseMarked: a running container with marks and leases is removed at once, and
// nothing is held afterwards.
func TestReleaseMarked(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t))
			c := startMarked(t, agent, e)
			c.Remove(t)
			agent.AwaitIdle(t)
			harness.Eventually(t, "the marks go with the container", func() error {
				if s := agent.Status(t); s.Marks.Now != 0 {
					return fmt.Errorf("%+v", s.Marks)
				}
				return nil
			})
			for _, held := range agent.Descriptors(t) {
				if strings.Contains(held, "/data/") || strings.Contains(held, "/merged") {
					t.Errorf("the agent still has %s open", held)
				}
			}
		})
	}
}

// TestNewGeneration: a list that grows takes effect in running containers, on files
// that the kernel answered for.
func TestNewGeneration(t *testing.T) {
	for _, then := range []string{"rescan", "wait"} {
		t.Run(then, func(t *testing.T) {
			list := suite.AnyHash(t)
			agent := suite.StartAgent(t, harness.HashScanner(list)+"tenants:\n"+
				harness.Tenant("default", "{}", "hashes", "onNewGeneration: "+then))
			c := startMarked(t, agent, suite.Runc())
			before := agent.Status(t)
			appendTo(t, list, harness.HashLine([]byte(harness.CleanText), "Assay.Test.News"))

			if then == "rescan" { // before anybody opens it again
				agent.AwaitRecord(t, "the file found in the background", func(r harness.Record) bool {
					return r.Op == "scan" && r.Path == harness.CleanFile
				})
			}
			read := []string{"guest", "read", harness.CleanFile, harness.NextToBad}
			harness.Eventually(t, "the listed file is refused", func() error {
				if r := c.Exec(t, read...); r.Stdout != harness.CleanFile+": EPERM\n"+harness.NextToBad+": 10 bytes\n" {
					return fmt.Errorf("it is not: %s", r)
				}
				return nil
			})
			if r := agent.AwaitDenied(t, harness.CleanFile); r.Signature() != "Assay.Test.News" {
				t.Errorf("refused for %q, want the new line of the list", r.Signature())
			}
			after := agent.Status(t)
			if after.Marks.Flushed == before.Marks.Flushed || after.Scanners[0].Generation == before.Scanners[0].Generation {
				t.Errorf("want marks taken back for a new generation: %+v, before %+v", after, before)
			}
		})
	}
}
