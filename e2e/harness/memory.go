package harness

import (
	"encoding/json"
	"fmt"
	"testing"
)

// A Store is what these tests read of the verdict store.
type Store struct {
	File         string            `json:"file"`
	Healthy      bool              `json:"healthy"`
	Error        string            `json:"error"`
	Damage       string            `json:"damage"`
	ReadOnly     bool              `json:"readOnly"`
	Bytes        int64             `json:"bytes"`
	Restored     int               `json:"restored"`
	DamagedBytes int64             `json:"damagedBytes"`
	Written      uint64            `json:"written"`
	Lost         map[string]uint64 `json:"lost"`
}

// Verdicts is what these tests read from `assay -o json verdicts`.
type Verdicts struct {
	Cache struct {
		Files  int    `json:"files"`
		Hits   uint64 `json:"hits"`
		Misses uint64 `json:"misses"`
	} `json:"cache"`
	Scopes []struct {
		Kind  string `json:"kind"`
		Label string `json:"label"`
		Users int    `json:"users"`
		Files int    `json:"files"`
	} `json:"scopes"`
	Scanners []struct {
		Name        string `json:"name"`
		Generations []struct {
			Generation string `json:"generation"`
			Verdicts   int    `json:"verdicts"`
			Current    bool   `json:"current"`
		} `json:"generations"`
		Malicious int `json:"malicious"`
	} `json:"scanners"`
	Store Store `json:"store"`
}

// Layers returns the files that verdicts are kept of, by layer.
func (v Verdicts) Layers() map[string]int {
	layers := map[string]int{}
	for _, s := range v.Scopes {
		if s.Kind == "layer" {
			layers[s.Label] += s.Files
		}
	}
	return layers
}

// An Explanation is what these tests read from `assay -o json explain`.
type Explanation struct {
	Policy struct {
		Tenant      string `json:"tenant"`
		KernelMarks string `json:"kernelMarks"`
	} `json:"policy"`
	File struct {
		Type  string `json:"type"`
		Size  int64  `json:"size"`
		Mount struct {
			Destination string `json:"destination"`
			Kind        string `json:"kind"`
		} `json:"mount"`
	} `json:"file"`
	Layer struct {
		Pristine bool   `json:"pristine"`
		Digest   string `json:"digest"`
		Depth    int    `json:"depth"`
		Reason   string `json:"reason"`
		Text     string `json:"text"`
	} `json:"layer"`
	Scanners []struct {
		Name     string `json:"name"`
		Verdicts []struct {
			Verdict   string `json:"verdict"`
			Signature string `json:"signature"`
			Current   bool   `json:"current"`
			Scope     string `json:"scope"`
		} `json:"verdicts"`
	} `json:"scanners"`
	Mark struct {
		State string `json:"state"`
		Lease string `json:"lease"`
		Why   string `json:"why"`
	} `json:"mark"`
	Open Prediction `json:"open"`
	Exec Prediction `json:"exec"`
}

// A Prediction is how the next open or exec of a file will be answered.
type Prediction struct {
	Answer   string   `json:"answer"`
	Decision string   `json:"decision"`
	Source   string   `json:"source"`
	Reason   string   `json:"reason"`
	Scanners []string `json:"scanners"`
}

// A Scan is what these tests read from `assay -o json scan image|layer|path`.
type Scan struct {
	Kind     string   `json:"kind"`
	Names    []string `json:"names"`
	Complete bool     `json:"complete"`
	Totals   struct {
		Layers    int `json:"layers"`
		Files     int `json:"files"`
		Cached    int `json:"cached"`
		Malicious int `json:"malicious"`
		Errors    int `json:"errors"`
	} `json:"totals"`
	Findings []struct {
		Layer    string `json:"layer"`
		Path     string `json:"path"`
		Size     int64  `json:"size"`
		Verdict  string `json:"verdict"`
		Scanners []struct {
			Signature string `json:"signature"`
		} `json:"scanners"`
	} `json:"findings"`
}

// json runs a command of the operator's program, which has to end with this exit
// code, and decodes what it prints.
func (a *Agent) json(tb testing.TB, code int, into any, args ...string) {
	tb.Helper()
	r := a.CLI(tb, append([]string{"-o", "json"}, args...)...)
	if r.Code != code {
		tb.Fatalf("assay %q: want exit code %d: %s", args, code, r)
	}
	if err := json.Unmarshal([]byte(r.Stdout), into); err != nil {
		tb.Fatalf("assay %q: %v: %s", args, err, r)
	}
}

// Verdicts returns the agent's account of the verdicts that it keeps.
func (a *Agent) Verdicts(tb testing.TB) Verdicts {
	tb.Helper()
	var v Verdicts
	a.json(tb, 0, &v, "verdicts")
	return v
}

// Explain returns what the agent knows of a container's file.
func (a *Agent) Explain(tb testing.TB, c Container, path string) Explanation {
	tb.Helper()
	var e Explanation
	a.json(tb, 0, &e, "explain", "--container", c.ID(), path)
	return e
}

// Scan runs `assay scan` with the given arguments, and expects its exit code.
func (a *Agent) Scan(tb testing.TB, code int, args ...string) Scan {
	tb.Helper()
	var s Scan
	a.json(tb, code, &s, append([]string{"scan"}, args...)...)
	return s
}

// AwaitAhead waits until the agent has scanned at least so many layers ahead of
// the first open, and has none left to scan.
func (a *Agent) AwaitAhead(tb testing.TB, layers int) Status {
	tb.Helper()
	var s Status
	Eventually(tb, "the agent scans layers ahead", func() error {
		s = a.Status(tb)
		if s.Ahead.State != "idle" || s.Ahead.LayersDone < layers {
			return fmt.Errorf("it says %+v", s.Ahead)
		}
		return nil
	})
	return s
}

// AwaitStored waits until the store has written so many verdicts.
func (a *Agent) AwaitStored(tb testing.TB, verdicts uint64) {
	tb.Helper()
	Eventually(tb, "verdicts reach the disk", func() error {
		if s := a.Status(tb).Store; s.Written < verdicts {
			return fmt.Errorf("want %d: %+v", verdicts, s)
		}
		return nil
	})
}
