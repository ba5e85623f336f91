package guard

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
)

// heldEventMemory is what docs/limitations.md says of an event that waits.
const heldEventMemory = 16 << 10

// TestKernelHeldEventMemory: a flood costs so much memory for each opener that waits,
// and no more.
func TestKernelHeldEventMemory(t *testing.T) {
	const openers = 400
	s := newStubborn(t, clean)
	with := withMemory(t) // ends last
	r := newRig(t, s, config(func(p *tenant.Tenant) {
		p.Deadline, p.OnExec, p.ScanAhead = time.Hour, false, tenant.AheadOff
	}), with)
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := used()
	all := begin(t, shell(t, fmt.Sprintf(`for i in $(seq %d); do cat "$0" & done; wait`, openers), c.Path("good")))
	s.began(t)
	eventually(t, "all openers wait", func() bool {
		// All but one have been with a worker, and wait for its scan.
		return r.Tenants()[0].Held == openers && r.joined() == openers-1
	})
	each := (used() - before) / openers
	t.Logf("%d bytes for each event that waits", each)
	if most := uint64(heldEventMemory); each > most {
		t.Errorf("%d bytes for each event that waits, want at most %d", each, most)
	}
	s.release()
	if _, ok := all.result(t); !ok {
		t.Error("an opener was refused")
	}
}
