package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestScanAhead: while a container sleeps, its layers are scanned: malware that nobody
// has opened is on record, and what is opened first later is not scanned any more.
func TestScanAhead(t *testing.T) {
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			agent := suite.StartAgent(t, anyHash(t))
			c := e.Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
			s := agent.AwaitAhead(t, 3)
			if s.Ahead.Findings != 1 || s.Ahead.FilesDone != s.Ahead.FilesTotal || s.Ahead.FilesTotal < 20 || s.Ahead.LayersQueued != 0 {
				t.Errorf("want all files of the image done and one finding: %+v", s.Ahead)
			}
			record := agent.AwaitRecord(t, "the malware that nobody has opened", func(r harness.Record) bool { return r.Op == "scan" })
			if record.Path != harness.BadFile || record.Verdict != "malicious" || record.Decision != "" || record.Signature() == "" || record.Container.ID != "" {
				t.Errorf("want a record of %s: %+v", harness.BadFile, record)
			}
			if n := agent.Status(t).Denied(); n != 0 {
				t.Errorf("%d events were denied, and nobody has opened anything bad", n)
			}

			before := agent.Status(t).Scans("default")
			wantEveryRead(t, c.Exec(t, everyRead()...))
			if after := agent.Status(t).Scans("default"); after != before {
				t.Errorf("the first opens made %d scans, want none", after-before)
			}
			if r := agent.AwaitDenied(t, harness.BadFile); r.Source != "cache" {
				t.Errorf("denied by %q, want the cache", r.Source)
			}
			c.Kill(t)
			c.Remove(t)
		})
	}
}

// TestScanAheadNamesLayer: the record of malware that nobody has opened says in which
// layer it is.
func TestScanAheadNamesLayer(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	image := suite.PodmanImage(t)
	suite.Podman("runc").Run(t, harness.Spec{Args: []string{"true"}, Gate: agent.Gate("")})
	record := agent.AwaitRecord(t, "the malware that nobody has opened", func(r harness.Record) bool { return r.Op == "scan" })
	if want := image.DiffIDs(t)[1]; record.File.Layer != want {
		t.Errorf("the record names the layer %q, want %s", record.File.Layer, want)
	}
	r := agent.CLI(t, "events", "--op", "scan")
	if r.Code != 0 || !strings.Contains(r.Stdout, harness.BadFile) {
		t.Errorf("events --op scan does not show it: %s", r)
	}
}

// TestScanAheadPaused: a paused agent scans nothing ahead, answers openers all the same,
// and makes up for it when it is resumed.
func TestScanAheadPaused(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	if r := agent.CLI(t, "scan", "pause"); r.Code != 0 {
		t.Fatal(r)
	}
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	wantRead(t, c.Exec(t, "guest", "read", harness.TopFile, harness.BadFile), harness.TopFile+": 18 bytes", harness.BadFile+": EPERM")
	harness.Eventually(t, "the agent says that it is paused", func() error {
		if s := agent.Status(t).Ahead; s.State != "paused" || s.LayersQueued == 0 || s.FilesDone != 0 {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
	if n := agent.CountRecords(func(r harness.Record) bool { return r.Op == "scan" }); n != 0 {
		t.Errorf("%d records of scans ahead", n)
	}
	if r := agent.CLI(t, "scan", "resume"); r.Code != 0 {
		t.Fatal(r)
	}
	agent.AwaitAhead(t, 3)
	before := agent.Status(t).Scans("default")
	wantRead(t, c.Exec(t, "guest", "read", "/data/many/00", harness.NextToBad), "/data/many/00: 7 bytes", harness.NextToBad+": 10 bytes")
	if after := agent.Status(t).Scans("default"); after != before {
		t.Errorf("%d scans after all was scanned ahead", after-before)
	}
}

// TestScanImage: an image is scanned before there is a container of it, and then none of
// its files is scanned again.
func TestScanImage(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\""))
	image, podman := suite.PodmanImage(t), suite.Podman("runc")
	layers := image.DiffIDs(t)
	// The agent looks in storages that a container came from.
	podman.Run(t, harness.Spec{Args: []string{"true"}, Gate: agent.Gate("")})
	for _, name := range []string{image.Name, image.ID} {
		scan := agent.Scan(t, 1, "image", name)
		wantEICAR(t, scan, layers[1])
		if scan.Kind != "image" || scan.Totals.Layers != 3 || scan.Totals.Files < 20 || !slices.Equal(scan.Names, []string{name}) {
			t.Errorf("scan of %s: %+v", name, scan)
		}
	}
	if again := agent.Scan(t, 1, "image", image.Name); again.Totals.Cached != again.Totals.Files {
		t.Errorf("%d of %d files were known when the image was scanned again", again.Totals.Cached, again.Totals.Files)
	}
	wantNoScans(t, agent, "first container", func() {
		wantEveryRead(t, podman.Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
	})
	wantLayers(t, agent, layers...)
}

// wantEICAR fails t unless the scan came to its end and found EICAR in this layer.
func wantEICAR(t *testing.T, scan harness.Scan, layer string) {
	t.Helper()
	if !scan.Complete || scan.Totals.Malicious != 1 || scan.Totals.Errors != 0 || len(scan.Findings) != 1 {
		t.Fatalf("want a complete scan with one finding: %+v", scan)
	}
	f := scan.Findings[0]
	if f.Layer != layer || !strings.HasSuffix(f.Path, harness.BadFile) || f.Verdict != "malicious" ||
		f.Size != int64(len(harness.EICAR())) || f.Scanners[0].Signature == "" {
		t.Errorf("want %s in %s: %+v", harness.BadFile, layer, f)
	}
}

// TestScanLayer: layers go by their digest, or by their directory.
func TestScanLayer(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\""))
	layers := suite.PodmanImage(t).DiffIDs(t)
	suite.Podman("runc").Run(t, harness.Spec{Args: []string{"true"}, Gate: agent.Gate("")})
	wantEICAR(t, agent.Scan(t, 1, "layer", layers[1]), layers[1])
	for _, clean := range []string{layers[0], layers[2]} {
		if scan := agent.Scan(t, 0, "layer", clean); !scan.Complete || scan.Totals.Files < 3 || len(scan.Findings) != 0 {
			t.Errorf("scan of %s: %+v", clean, scan)
		}
	}
	dirs := suite.Image(t).Layers
	wantEICAR(t, agent.Scan(t, 1, "layer", dirs[1]), dirs[1])
	// The program is another layer's.
	agent.Scan(t, 0, "layer", dirs[0])
	wantNoScans(t, agent, "container on the directories", func() {
		wantRead(t, suite.Runc().Run(t, harness.Spec{Args: []string{"guest", "read", harness.BadFile, harness.NextToBad}, Gate: agent.Gate("")}),
			harness.BadFile+": EPERM", harness.NextToBad+": 10 bytes")
	})
}

// TestScanPath: a directory of the host is scanned by several at once, and every file is
// counted.
func TestScanPath(t *testing.T) {
	const files = 300
	agent := suite.StartAgent(t, anyHash(t))
	all := map[string][]byte{}
	for i := range files {
		all[fmt.Sprint(i)] = fmt.Appendln(nil, "file", i)
	}
	clean := suite.HostDirectory(t, all)
	if scan := agent.Scan(t, 0, "path", "-j", "16", clean); !scan.Complete || scan.Totals.Files != files || len(scan.Findings) != 0 {
		t.Errorf("want %d clean files: %+v", files, scan)
	}
	bad := suite.HostDirectory(t, map[string][]byte{"clean": []byte("clean\n"), "bad": harness.EICAR()})
	scan := agent.Scan(t, 1, "path", bad, clean)
	if !scan.Complete || scan.Kind != "path" || scan.Totals.Files != files+2 || len(scan.Findings) != 1 || scan.Findings[0].Path != bad+"/bad" {
		t.Errorf("want %s/bad to be found among %d files: %+v", bad, files+2, scan)
	}
}

// TestScanUnknown: what is not there is no clean scan, and the remedy says what to do.
func TestScanUnknown(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	for _, args := range [][]string{
		{"scan", "image", "localhost/no-such-image:1"},
		{"scan", "layer", "sha256:" + strings.Repeat("0", 64)},
		{"scan", "layer", "/no/such/directory"},
		{"scan", "path", "/no/such/directory"},
	} {
		if r := agent.CLI(t, args...); r.Code != 2 || !strings.Contains(r.Stderr, "remedy: ") {
			t.Errorf("assay %q: want exit code 2 and a remedy: %s", args, r)
		}
	}
}

// TestImageReplaced: an image of the same name with other layers starts from nothing.
func TestImageReplaced(t *testing.T) {
	const path = "/data/change.txt"
	agent := suite.StartAgent(t, anyHash(t))
	podman := suite.Podman("runc")
	read := func(image *harness.PodmanImage) harness.Result {
		return podman.Run(t, harness.Spec{Args: []string{"guest", "read", path}, Gate: agent.Gate(""), Image: image.ID})
	}
	old := suite.Pull(t, "replaced", map[string]string{path: strings.Repeat("c", len(harness.EICAR()))})
	for range 2 {
		wantRead(t, read(old), path+": 68 bytes")
	}
	old.Remove(t)
	bad := suite.Pull(t, "replaced", map[string]string{path: string(harness.EICAR())})
	if old.Name != bad.Name {
		t.Fatalf("the images are called %s and %s", old.Name, bad.Name)
	}
	wantRead(t, read(bad), path+": EPERM")
	bad.Remove(t)
	good := suite.Pull(t, "replaced", map[string]string{path: "good again\n"})
	wantRead(t, read(good), path+": 11 bytes")
}

// TestImagePulledAgain: layers that were removed and pulled again are judged again, even
// where the agent remembers layers of the same digest, and nobody has changed them.
func TestImagePulledAgain(t *testing.T) {
	const path, bad = "/data/again.txt", "/data/again-bad.txt"
	agent := suite.StartAgent(t, anyHash(t))
	podman := suite.Podman("runc")
	layer := map[string]string{path: "pulled again\n", bad: string(harness.EICAR())}
	for range 3 {
		image := suite.Pull(t, "again", layer)
		spec := harness.Spec{Args: []string{"guest", "read", path, bad}, Gate: agent.Gate(""), Image: image.ID}
		wantRead(t, podman.Run(t, spec), path+": 13 bytes", bad+": EPERM")
		agent.AwaitIdle(t)
		agent.AwaitAhead(t, 2)
		wantNoScans(t, agent, "second container", func() { wantRead(t, podman.Run(t, spec), path+": 13 bytes", bad+": EPERM") })
		if got := agent.Verdicts(t).Layers()[image.DiffIDs(t)[1]]; got == 0 {
			t.Error("no verdicts are kept of the layer that was pulled")
		}
		image.Remove(t)
	}
}
