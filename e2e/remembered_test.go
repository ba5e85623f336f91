package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

// everyRead is what a container of these tests opens: files of all three layers,
// one of them EICAR, besides the program of the lowest layer.
func everyRead() []string {
	return []string{"guest", "read", harness.CleanFile, harness.NextToBad, harness.BadFile, harness.TopFile}
}

func wantEveryRead(t *testing.T, r harness.Result) {
	t.Helper()
	wantRead(t, r, harness.CleanFile+": 13 bytes", harness.NextToBad+": 10 bytes",
		harness.BadFile+": EPERM", harness.TopFile+": 18 bytes")
}

// anyHash returns a configuration whose hash list has every file read.
func anyHash(t *testing.T, policy ...string) string {
	t.Helper()
	return harness.HashScanner(suite.AnyHash(t)) + "tenants:\n" + harness.Tenant("default", "{}", "hashes", policy...)
}

// scansAfter returns the tenant's scans when everybody has been answered.
func scansAfter(t *testing.T, agent *harness.Agent) uint64 {
	t.Helper()
	agent.AwaitIdle(t)
	return agent.Status(t).Scans("default")
}

// wantNoScans fails t if running the container makes scanners look at anything.
func wantNoScans(t *testing.T, agent *harness.Agent, which string, run func()) {
	t.Helper()
	before := agent.Status(t).Scans("default")
	run()
	if after := scansAfter(t, agent); after != before {
		t.Errorf("%s: %d scans, want none", which, after-before)
	}
}

// wantLayers fails t unless verdicts are kept of this image's layers and no others.
func wantLayers(t *testing.T, agent *harness.Agent, want ...string) {
	t.Helper()
	got := slices.Sorted(maps.Keys(agent.Verdicts(t).Layers()))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("verdicts are kept of the layers\n%q, want\n%q", got, want)
	}
}

// TestSecondContainer: what one container's opens have had scanned answers the next
// container of the image, by whatever engine; malware stays malware.
func TestSecondContainer(t *testing.T) {
	for _, marks := range []string{"layers", `"off"`} {
		for _, e := range suite.Engines() {
			t.Run(fmt.Sprintf("%s/%s", marks, e.Name()), func(t *testing.T) {
				agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\"", "kernelMarks: "+marks))
				spec := harness.Spec{Args: everyRead(), Gate: agent.Gate("")}
				wantEveryRead(t, e.Run(t, spec))
				// The program and the four files.
				if n := scansAfter(t, agent); n < 5 {
					t.Errorf("the first container made %d scans, want 5 or more", n)
				}
				for _, which := range []string{"second container", "third container"} {
					wantNoScans(t, agent, which, func() { wantEveryRead(t, e.Run(t, spec)) })
				}
				if v := agent.Verdicts(t); len(v.Layers()) != 3 || v.Scanners[0].Malicious != 1 {
					t.Errorf("want verdicts of three layers, one of them malicious: %+v", v)
				}
			})
		}
	}
}

// TestLayerDigests: records and verdicts call layers as the image does.
func TestLayerDigests(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\""))
	image := suite.PodmanImage(t)
	layers := image.DiffIDs(t)
	wantEveryRead(t, suite.Podman("runc").Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
	for i, path := range []string{harness.CleanFile, harness.BadFile, harness.TopFile} {
		record := agent.AwaitRecord(t, path, func(r harness.Record) bool { return r.Path == path })
		if record.File.Layer != layers[i] || !record.File.Pristine {
			t.Errorf("%s: %+v, want the pristine file of %s", path, record.File, layers[i])
		}
	}
	wantLayers(t, agent, layers...)
}

// TestSecondContainerClamd: a clamd whose database has a version is remembered as well,
// until the version changes.
func TestSecondContainerClamd(t *testing.T) {
	name, body := harness.ClamSignature()
	clamd := startClamd(t)
	agent := suite.StartAgent(t, clamdConfig(clamd.Socket(), "scanAhead: \"off\"", "onNewGeneration: wait"))
	read := harness.Spec{Args: []string{"guest", "read", harness.ClamFile, harness.NextToBad, harness.TopFile}, Gate: agent.Gate("")}
	want := []string{harness.ClamFile + ": EPERM", harness.NextToBad + ": 10 bytes", harness.TopFile + ": 18 bytes"}
	for _, e := range []harness.Engine{suite.Podman("runc"), suite.Runc()} {
		t.Run(e.Name(), func(t *testing.T) {
			wantRead(t, e.Run(t, read), want...)
			for _, which := range []string{"second container", "third container"} {
				wantNoScans(t, agent, which, func() { wantRead(t, e.Run(t, read), want...) })
			}
		})
	}
	old := agent.Status(t).Scanners[0].Generation
	clamd.ReplaceDatabase(t, clamdtest.Signature{Name: name, Content: body}, clamdtest.Signature{Name: "Assay.Test.Top", Content: []byte("the topmost layer")})
	harness.Eventually(t, "the agent learns of the new database", func() error {
		if now := agent.Status(t).Scanners[0].Generation; now == old {
			return fmt.Errorf("generation %q is still that of before", now)
		}
		return nil
	})
	r := suite.Runc().Run(t, read)
	wantRead(t, r, harness.ClamFile+": EPERM", harness.NextToBad+": 10 bytes", harness.TopFile+": EPERM")
}

// TestTenantsShareNoTrust: what one tenant's scanner calls clean answers nobody whose
// policy asks another one, whichever container comes first, nor does it the other way.
func TestTenantsShareNoTrust(t *testing.T) {
	clamd := startClamd(t)
	scanners := harness.HashScanner(suite.AnyHash(t)) + strings.TrimPrefix(harness.ClamdScanner(clamd.Socket()), "scanners:\n")
	for _, ahead := range []string{`"off"`, "layers"} {
		for _, e := range []harness.Engine{suite.Podman("runc"), suite.Runc()} {
			t.Run(ahead+"/"+e.Name(), func(t *testing.T) {
				agent := suite.StartAgent(t, scanners+"tenants:\n"+
					harness.Tenant("weak", "{namespaces: [weak]}", "hashes", "scanAhead: "+ahead)+
					harness.Tenant("strong", "{}", "clamav", "scanAhead: "+ahead))
				weak := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("weak")})
				wantRead(t, weak.Exec(t, "guest", "read", harness.ClamFile, harness.ClamFile, harness.ClamFile, harness.BadFile),
					harness.ClamFile+": 49 bytes", harness.ClamFile+": 49 bytes", harness.ClamFile+": 49 bytes", harness.BadFile+": EPERM")
				harness.Eventually(t, "the weak tenant's file is marked", func() error {
					if m := agent.Explain(t, weak, harness.ClamFile).Mark; m.State != "marked" {
						return fmt.Errorf("its mark is %+v", m)
					}
					return nil
				})
				// EICAR is not in this clamd's database: nor is the weak one's verdict the strong one's.
				strong := harness.Spec{Args: []string{"guest", "read", harness.ClamFile, harness.BadFile}, Gate: agent.Gate("any")}
				for range 2 {
					wantRead(t, e.Run(t, strong), harness.ClamFile+": EPERM", harness.BadFile+": 68 bytes")
				}
				wantRead(t, weak.Exec(t, "guest", "read", harness.ClamFile, harness.BadFile), harness.ClamFile+": 49 bytes", harness.BadFile+": EPERM")
				if r := agent.AwaitDenied(t, harness.ClamFile); r.Tenant != "strong" || r.Scanners[0].Name != "clamav" {
					t.Errorf("denied by %s of %s, want clamav of strong", r.Scanners[0].Name, r.Tenant)
				}
				weak.Kill(t)
				weak.Remove(t)
			})
		}
	}
}

// TestTenantMovesUp: a container whose tenant becomes a stricter one loses what the
// kernel allowed it.
func TestTenantMovesUp(t *testing.T) {
	list := suite.AnyHash(t, harness.HashLine([]byte(harness.CleanText), "Assay.Test.Strict"))
	scanners := harness.HashScanner(suite.AnyHash(t)) + "  - name: strict\n    hashlist: {files: [" + list + "]}\ntenants:\n"
	agent := suite.StartAgent(t, scanners+harness.Tenant("default", "{}", "hashes"))
	c := startMarked(t, agent, suite.Runc())
	if s := agent.Reload(t, scanners+harness.Tenant("default", "{}", "strict")); s.ReloadError != "" {
		t.Fatal(s.ReloadError)
	}
	harness.Eventually(t, "the stricter list counts", func() error {
		if r := c.Exec(t, "guest", "read", harness.CleanFile); r.Stdout != harness.CleanFile+": EPERM\n" {
			return fmt.Errorf("the file is not refused: %s", r)
		}
		return nil
	})
}
