package e2e

import (
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// explained is a line that `assay explain` prints of a file.
type explained struct {
	name, path string
	layer      string   // the reason in one word
	typ        string   // of the file
	text       []string // what people are told, in this order
	predicted  harness.Prediction
}

// TestExplain: what is said of a file is what then happens to it.
func TestExplain(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	podman := suite.Podman("runc")
	vol := suite.HostDirectory(t, map[string][]byte{"clean.txt": []byte("on a volume\n"), "bad.txt": harness.EICAR()})
	c := podman.Start(t, harness.Spec{
		Args: []string{"sleep", "1000"}, Gate: agent.Gate(""),
		Binds: []harness.Bind{{Source: vol, Destination: "/vol"}},
	})
	agent.AwaitAhead(t, 3)
	own := c.Exec(t, "sh", "-c", "echo mine > /data/mine.txt; echo more >> "+harness.TopFile+"; ln -s "+harness.CleanFile+" /data/link")
	if own.Code != 0 {
		t.Fatal(own)
	}
	layers := suite.PodmanImage(t).DiffIDs(t)
	scanned := harness.Prediction{Answer: "scan", Scanners: []string{"hashes"}}
	for _, tt := range []explained{
		{
			"pristine", harness.CleanFile, "pristine", "regular",
			[]string{"Policy", "tenant default, enforce", "File", "regular, 13B", "Mount", "mark superblock", "Layer", layers[0], "proven to be as the layer has it", "hashes", "clean", "yes", "layer", "open", "allow"},
			harness.Prediction{Answer: "at-once", Decision: "allow", Source: "cache", Reason: "clean"},
		},
		{
			"through a link", "/data/link", "pristine", "regular",
			[]string{layers[0]},
			harness.Prediction{Answer: "at-once", Decision: "allow", Source: "cache", Reason: "clean"},
		},
		{
			"malicious", harness.BadFile, "pristine", "regular",
			[]string{layers[1], "hashes", "malicious", "layer", "Eicar-Test-Signature", "open", "deny", "cache", "malicious"},
			harness.Prediction{Answer: "at-once", Decision: "deny", Source: "cache", Reason: "malicious"},
		},
		{
			"changed", harness.TopFile, "overlaid", "regular",
			[]string{"Layer", "none: overlaid", "in place of the layer's", "after a scan", "scan by hashes"},
			scanned,
		},
		{
			"the container's own", "/data/mine.txt", "born-in-container", "regular",
			[]string{"Layer", "none: born-in-container", "was made in the container", "after a scan"},
			scanned,
		},
		{
			"on a volume", "/vol/clean.txt", "other-mount", "regular",
			[]string{"Mount", "/vol", "mark mount", "none: other-mount", "on a volume or another mount", "after a scan"},
			scanned,
		},
		{
			"a directory", "/data", "not-regular", "directory",
			[]string{"directory", "none: not-regular", "Only regular files come from layers", "allow", "policy", "not-regular"},
			harness.Prediction{Answer: "at-once", Decision: "allow", Source: "policy", Reason: "not-regular"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := agent.Explain(t, c, tt.path)
			if e.Layer.Reason != tt.layer || e.Layer.Pristine != (tt.layer == "pristine") || e.File.Type != tt.typ || e.Layer.Text == "" {
				t.Errorf("want a %s file that is %s: %+v", tt.typ, tt.layer, e)
			}
			for _, got := range []harness.Prediction{e.Open, e.Exec} {
				if got.Answer != tt.predicted.Answer || got.Decision != tt.predicted.Decision || got.Source != tt.predicted.Source ||
					got.Reason != tt.predicted.Reason || strings.Join(got.Scanners, " ") != strings.Join(tt.predicted.Scanners, " ") {
					t.Errorf("predicted %+v, want %+v", got, tt.predicted)
				}
			}
			r := agent.CLI(t, "explain", "--container", c.ID()[:12], tt.path)
			wantInOrder(t, r, tt.text...)
		})
	}

	// Asking has scanned nothing and marked nothing; now what was said comes true.
	before := agent.Status(t).Scans("default")
	wantRead(t, c.Exec(t, "guest", "read", harness.CleanFile, harness.BadFile), harness.CleanFile+": 13 bytes", harness.BadFile+": EPERM")
	if after := agent.Status(t).Scans("default"); after != before {
		t.Errorf("%d scans of files that were to be answered at once", after-before)
	}
	wantRead(t, c.Exec(t, "guest", "read", harness.TopFile, "/data/mine.txt", "/vol/clean.txt"),
		harness.TopFile+": 23 bytes", "/data/mine.txt: 5 bytes", "/vol/clean.txt: 12 bytes")
	if after := agent.Status(t).Scans("default"); after != before+3 {
		t.Errorf("%d scans, want one of each of three files", after-before)
	}
}

// wantInOrder fails t unless the output has these words one after another.
func wantInOrder(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	rest := r.Stdout
	for _, word := range words {
		_, after, found := strings.Cut(rest, word)
		if r.Code != 0 || !found {
			t.Errorf("want %q after what came before it: %s", word, r)
			return
		}
		rest = after
	}
}

// TestExplainNothing: what cannot be explained is exit code 2, and says what to do.
func TestExplainNothing(t *testing.T) {
	agent := suite.StartAgent(t, anyHash(t))
	c := suite.Runc().Start(t, harness.Spec{Args: []string{"sleep", "1000"}, Gate: agent.Gate("")})
	for _, tt := range []struct{ container, path, remedy string }{
		{"no-such-container", harness.CleanFile, "`assay status` lists the containers"},
		{c.ID(), "/data/no-such-file", "name the file as the container sees it"},
		{c.ID(), "data/clean.txt", "/"},
	} {
		r := agent.CLI(t, "explain", "--container", tt.container, tt.path)
		if r.Code != 2 || r.Stdout != "" || !strings.Contains(r.Stderr, "remedy: ") || !strings.Contains(r.Stderr, tt.remedy) {
			t.Errorf("explain %s of %s: want exit code 2 and a remedy with %q: %s", tt.path, tt.container, tt.remedy, r)
		}
	}
}
