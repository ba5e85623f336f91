package guard

import (
	"context"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// slow is a scanner whose first scan, once it is armed, has read the whole file and
// then keeps its verdict back until it is released. Its other scans end at once.
type slow struct {
	*scannertest.Fake
	started chan struct{}

	mu    sync.Mutex
	armed chan struct{} // closed by release
}

func newSlow(script scannertest.Script) *slow {
	s := &slow{started: make(chan struct{}, 16)}
	s.Fake = scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		v := script(ctx, f, gen)
		s.mu.Lock()
		released := s.armed
		s.armed = nil
		s.mu.Unlock()
		if released == nil {
			return v
		}
		s.started <- struct{}{}
		select {
		case <-released:
			return v
		case <-ctx.Done():
			return scanner.ErrorVerdict(ctx.Err())
		}
	})
	return s
}

// arm makes the next scan wait for release.
func (s *slow) arm() (release func()) {
	armed := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = armed
	return sync.OnceFunc(func() { close(armed) })
}

// joined is how many openers have waited for another's scan.
func (r *rig) joined() uint64 { return r.memory.Cache.Stats().Flights.Joined }

// inPlace are the changes that leave the file where it is, so that who waits for a scan
// of it reads what is new.
func inPlace() []string {
	all := map[string]change{}
	for _, some := range []map[string]change{writes(), mappings(), transfers(), ranges(), earlier()} {
		maps.Copy(all, some)
	}
	return slices.Sorted(maps.Keys(all))
}

// withoutOpen are those of them that open nothing once the scan has begun: whoever
// opens the file then, to write too, waits along.
func withoutOpen() []string {
	return slices.DeleteFunc(inPlace(), func(name string) bool {
		return !early(name) && !strings.HasPrefix(name, "truncate") || strings.HasPrefix(name, "truncated")
	})
}

// TestKernelChangedMidScan: a verdict on a file that was written to while it was
// scanned is an answer to the opener who waited for it, and nothing more: those who
// waited along have the file scanned again, as has the next. A volume is changed by
// somebody outside the container, whose opens nobody gates.
//
// It fails without birth and change time in the identity, without the look for writers
// around the scan, on either inode, and without that for another identity after it.
func TestKernelChangedMidScan(t *testing.T) {
	for _, k := range states() {
		if k.byKernel || k.marks == tenant.MarkLayers {
			continue // no marks come into it
		}
		t.Run(k.String(), func(t *testing.T) {
			script := newSlow(exactly(goodContent()))
			s := newStageFor(t, k, script, script.Fake)
			names := withoutOpen()
			if k.place == onVolume {
				s.changer, names = newChanger(t, nil), inPlace()
			}
			for _, name := range names {
				t.Run(name, func(t *testing.T) { s.midScan(t, script, name) })
			}
		})
	}
}

func (s *stage) midScan(t *testing.T, script *slow, name string) {
	t.Helper()
	path := s.c.Path(s.name(name))
	at := path
	if s.place == onVolume {
		at = s.volume + strings.TrimPrefix(path, s.c.Path("vol"))
	}
	if !s.changer.do(t, "prepare", name, at) {
		s.mayLack(t, name)
		return
	}
	reader := func() *opener { return begin(t, s.c.Command(t, "cat", path)) }
	release := script.arm()
	defer release()
	first := reader()
	receive(t, "the first scan", script.started)
	var along *opener
	if early(name) || !s.known {
		reader().wantContent(t, string(goodContent())) // nobody waits for a scan that proves nothing
	} else {
		joined := s.joined()
		along = reader()
		eventually(t, "the second opener waits along", func() bool { return s.joined() == joined+1 })
	}
	if !s.changer.do(t, "act") {
		s.mayLack(t, name)
	} else {
		s.wantDenied(t, path)
		release()
		first.result(t) // what it reads came after its verdict, if it is let in
		if along != nil {
			along.wantDenied(t)
		}
		s.wantDenied(t, path)
		s.changer.do(t, "drop")
		s.wantDenied(t, path)
	}
}

// TestKernelWriterPassesMidScan: a writer that came and went while the file was
// scanned, and changed it there and back, leaves no verdict either.
func TestKernelWriterPassesMidScan(t *testing.T) {
	script := newSlow(scannertest.Contains(needle, "Test.Malware"))
	r := newRig(t, script, config(func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec = tenant.MarkAll, tenant.AheadOff, false
	}), withMemory(t))
	dir := t.TempDir()
	c := kerneltest.NewContainer(t, map[string]string{"vol/empty": ""}, "mount --bind "+dir+" vol; printf content >vol/file")
	r.announced(t, c)
	reader := func() *opener { return begin(t, c.Command(t, "cat", c.Path("vol/file"))) }
	release := script.arm()
	defer release()
	first := reader()
	receive(t, "the scan", script.started)
	pass := `cp --preserve=all file kept; printf x >>file; cat kept >file; touch -r kept file`
	if out, err := exec.CommandContext(t.Context(), "sh", "-e", "-c", "cd "+dir+"; "+pass).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	release()
	first.wantContent(t, "content")
	scans := script.Calls()
	reader().wantContent(t, "content")
	if script.Calls() == scans {
		t.Error("a verdict was kept from a scan with a writer in the middle")
	}
}
