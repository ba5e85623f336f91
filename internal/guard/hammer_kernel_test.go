package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner/scannertest"
)

// roundsVariable is how many changes TestKernelHammered makes in each of its modes; see
// `make test-stress`.
const roundsVariable = "ASSAY_STRESS_ROUNDS"

const (
	writers, readers  = 2, 2
	hammeredByDefault = 1500
)

// TestKernelHammered: however often files change, while others open them, once a file
// has bad content nobody is let in by what was known before: not once in all rounds.
// It fails without birth and change time in the identity, and without the lease under
// a mark; of writers who keep a mapping for later it knows nothing, see
// TestKernelChanged.
func TestKernelHammered(t *testing.T) {
	rounds := hammeredByDefault
	if set := os.Getenv(roundsVariable); set != "" {
		var err error
		if rounds, err = strconv.Atoi(set); err != nil {
			t.Fatal(err)
		}
	}
	for _, marks := range eachMarks() {
		t.Run(string(marks), func(t *testing.T) { hammerOn(t, marks, rounds) })
	}
}

func hammerOn(t *testing.T, marks tenant.KernelMarks, rounds int) {
	t.Helper()
	each := (rounds/writers/hammered/again + 1) * hammered // files for a writer
	content := map[string]string{}
	for i := range writers * each {
		content[fmt.Sprint("file", i)] = "content"
	}
	fake := scannertest.NewFake("1", scannertest.Contains(needle, "Test.Malware"))
	r := newRig(t, fake, config(func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec, p.Deadline = marks, tenant.AheadOff, false, time.Hour
	}), withMemory(t))
	c := sharing(t, 1, content)[0]
	r.announced(t, c)
	path := filepath.Join(t.TempDir(), "board")
	if err := os.WriteFile(path, make([]byte, 4*(1+len(content))), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := openBoard(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	var writing, reading []*opener
	for i := range readers {
		reading = append(reading, startHammer(t, c, "reader", path, i*len(content)/readers, (i+1)*len(content)/readers, 0))
	}
	for i := range writers {
		writing = append(writing, startHammer(t, c, "writer", path, i*each, (i+1)*each, rounds/writers))
	}
	changed := results(t, writing, time.Minute+time.Duration(rounds)*10*time.Millisecond)
	b.word(0).Store(1)
	seen := results(t, reading, time.Minute)
	hits, st := r.Tenants()[0].Answers, r.marks.stats()
	t.Logf("%d changes, %d opens by others of a bad file; %d scans, %v; marks %+v", changed, seen, fake.Calls(), hits.Reasons, st)
	if changed < rounds/writers*writers {
		t.Errorf("%d rounds, want %d", changed, rounds)
	}
	if marks != tenant.MarkOff && st.Broken == 0 {
		t.Error("no mark was ever broken")
	}
}

// startHammer starts a hammer in the container.
func startHammer(t *testing.T, c *kerneltest.Container, role, board string, first, last, rounds int) *opener {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(t, exe, c.Merged, board, fmt.Sprint(first), fmt.Sprint(last), fmt.Sprint(rounds))
	cmd.Env = append(os.Environ(), hammerVariable+"="+role)
	return begin(t, cmd)
}

// results waits for hammers and returns how much they did. None may have been let in.
func results(t *testing.T, all []*opener, within time.Duration) (done int) {
	t.Helper()
	late := time.After(within)
	for _, o := range all {
		select {
		case err := <-o.done:
			var n, stale int
			if _, scan := fmt.Sscan(o.out.String(), &n, &stale); err != nil || scan != nil {
				t.Errorf("%v, %v: %s", err, scan, o.out.String())
			}
			if stale != 0 {
				t.Errorf("%d of %d opens of a bad file were allowed", stale, n)
			}
			done += n
		case <-late:
			t.Fatal("a process hangs")
		}
	}
	return done
}
