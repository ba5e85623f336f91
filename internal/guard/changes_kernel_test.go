package guard

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// exactly is a scanner's script that takes any change of the content for malicious.
// A file that was just made is empty, and clean.
func exactly(content []byte) scannertest.Script {
	return func(_ context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		got := make([]byte, 2*len(content))
		n, err := unix.Pread(f.FD, got, 0)
		switch {
		case err != nil:
			return scanner.ErrorVerdict(fmt.Errorf("%w: %w", scanner.ErrRead, err))
		case n == 0 || bytes.Equal(got[:n], content):
			return scanner.CleanVerdict(gen)
		}
		return scanner.MaliciousVerdict("Test.Changed", gen)
	}
}

// A knowledge is a state that the verdict on a file can be in when the file changes.
type knowledge struct {
	place    string // where the file is
	marks    tenant.KernelMarks
	known    bool // the verdict is remembered
	byKernel bool // and the kernel opens the file without an event
}

func (k knowledge) String() string { return k.place + " with marks " + string(k.marks) }

// The places.
const (
	inLayer  = "layer"
	born     = "born"      // made in the container
	copiedUp = "copied up" // of a layer, with its mode changed in the container
	onVolume = "volume"
	inMemory = "tmpfs volume"
)

// states are all that knowledge can be.
func states() []knowledge {
	return []knowledge{
		{inLayer, tenant.MarkOff, true, false},
		{inLayer, tenant.MarkLayers, true, true},
		{inLayer, tenant.MarkAll, true, true},
		{born, tenant.MarkOff, true, false},
		{born, tenant.MarkLayers, true, false},
		{born, tenant.MarkAll, true, true},
		{copiedUp, tenant.MarkOff, true, false},
		{copiedUp, tenant.MarkAll, true, true},
		{onVolume, tenant.MarkOff, true, false},
		{onVolume, tenant.MarkAll, true, true},
		{inMemory, tenant.MarkAll, false, false},
	}
}

// TestKernelChanged: whatever changes the content that is read at a path, and whatever
// was known of it before, the next open waits for a scan of what is there now.
//
// It fails without birth and change time in the identity (without the change time
// alone, too, but not without the birth time alone: what is made anew has another
// change time here), without the lease under a mark, without the question to the inode
// behind the overlay's, and if tmpfs is taken for a filesystem whose change times tell.
func TestKernelChanged(t *testing.T) {
	for _, k := range states() {
		t.Run(k.String(), func(t *testing.T) {
			s := newStage(t, k)
			for name := range changes() {
				if (k.place == onVolume || k.place == inMemory) && name == bindMount {
					continue // a mount that is made later is covered on the root filesystem only
				}
				t.Run(name, func(t *testing.T) { s.change(t, name) })
			}
		})
	}
}

// A stage is a container with a file for each change.
type stage struct {
	knowledge
	*rig
	fake    *scannertest.Fake
	c       *kerneltest.Container
	volume  string   // the directory that is mounted in it at vol
	changer *changer // nil where programs are run
}

func newStage(t *testing.T, k knowledge) *stage {
	t.Helper()
	fake := scannertest.NewFake("1", exactly(goodContent()))
	return newStageFor(t, k, fake, fake)
}

// newStageFor is newStage with a scanner, whose scans fake counts.
func newStageFor(t *testing.T, k knowledge, sc scanner.Scanner, fake *scannertest.Fake) *stage {
	t.Helper()
	s := &stage{knowledge: k, fake: fake}
	with := withMemory(t)
	s.rig = newRig(t, sc, config(func(p *tenant.Tenant) {
		p.KernelMarks, p.ScanAhead, p.OnExec = k.marks, tenant.AheadOff, false
	}), with)
	s.volume = t.TempDir()
	files := map[string]string{"source": string(goodContent()), "vol/empty": ""}
	if k.place == inLayer || k.place == copiedUp {
		for name := range changes() {
			files[s.name(name)] = string(goodContent())
		}
	}
	s.c = kerneltest.NewContainer(t, files, s.setup())
	s.announced(t, s.c)
	s.changer = newChanger(t, s.c)
	return s
}

// name is where the file for a change is. Each has a directory of its own.
func (s *stage) name(change string) string {
	dir := strings.NewReplacer(":", "", " ", "-", ",", "").Replace(change)
	if s.place == onVolume || s.place == inMemory {
		dir = "vol/" + dir
	}
	return dir + "/file"
}

// setup is a shell script that makes the files that are not a layer's.
func (s *stage) setup() string {
	var script []string
	switch s.place {
	case onVolume:
		script = append(script, "mount --bind "+s.volume+" vol")
	case inMemory:
		script = append(script, "mount -t tmpfs tmpfs vol")
	}
	for name := range changes() {
		file := s.name(name)
		switch s.place {
		case copiedUp:
			script = append(script, "chmod 700 "+file)
		case born, onVolume, inMemory:
			script = append(script, "mkdir "+filepath.Dir(file), "cp source "+file)
		}
	}
	return strings.Join(script, "\n")
}

// change tests one change.
func (s *stage) change(t *testing.T, name string) {
	t.Helper()
	path := s.c.Path(s.name(name))
	if early(name) && s.byKernel {
		s.learn(t, path) // a mark that the writer breaks
	}
	if !s.changer.do(t, "prepare", name, path) {
		s.mayLack(t, name)
		return
	}
	switch {
	case early(name) && s.byKernel:
		// What was known can hold until something is stored; a mark cannot.
		for range 3 {
			s.wantAllowed(t, path)
		}
	case early(name):
		s.neverKnown(t, path)
	default:
		s.learn(t, path)
	}
	if !s.changer.do(t, "act") {
		s.mayLack(t, name)
		return
	}
	scans := s.fake.Calls()
	s.wantDenied(t, path)
	if s.fake.Calls() == scans && name != "written through another name" {
		t.Error("denied without a scan")
	}
	s.changer.do(t, "drop")
	s.wantDenied(t, path)
}

// mayLack says that a filesystem cannot do something.
func (s *stage) mayLack(t *testing.T, name string) {
	t.Helper()
	lacking := []string{"fallocate, collapse range", "fallocate, insert range", "fallocate, zero range", "direct write", "io_uring"}
	if s.place != inMemory || !slices.Contains(lacking, name) {
		t.Error("the filesystem does not support it")
	}
}

// opened opens or runs a file in the container, and reports whether that was allowed.
func (s *stage) opened(t *testing.T, path string) bool {
	t.Helper()
	cmd, want := s.c.Command(t, "cat", path), string(goodContent())
	if s.changer == nil {
		cmd, want = s.c.Command(t, path), ""
	}
	out, ok := begin(t, cmd).result(t)
	if !ok && !strings.Contains(out, "Operation not permitted") {
		t.Fatalf("the opener failed otherwise: %s", out)
	}
	if ok && out != want {
		t.Errorf("the opener got other content: %.40q", out)
	}
	return ok
}

// wantDenied opens the file and wants a verdict of malicious.
func (s *stage) wantDenied(t *testing.T, path string) {
	t.Helper()
	for s.sub.Behind() > 0 {
		s.next(t)
	}
	if s.opened(t, path) {
		t.Error("the changed file was opened")
		return
	}
	for {
		// Records of what the changer opened can come in between.
		if rec := s.next(t); rec.Decision == "deny" {
			if rec.Verdict != "malicious" {
				t.Errorf("the record is %+v", rec)
			}
			return
		}
	}
}

// learn opens the clean file until its verdict is in the state of knowledge.
func (s *stage) learn(t *testing.T, path string) {
	t.Helper()
	events := func() uint64 { return s.readers.Stats().Events }
	eventually(t, "the verdict is known", func() bool {
		scans, before := s.fake.Calls(), events()
		s.wantAllowed(t, path)
		known, byKernel := s.fake.Calls() == scans, events() == before
		return (known || !s.known) && (byKernel || !s.byKernel)
	})
}

func (s *stage) wantAllowed(t *testing.T, path string) {
	t.Helper()
	if !s.opened(t, path) {
		t.Fatal("the clean file was not opened")
	}
}

// neverKnown opens a file that somebody may be writing to: it is scanned each time.
func (s *stage) neverKnown(t *testing.T, path string) {
	t.Helper()
	for range 3 {
		scans := s.fake.Calls()
		s.wantAllowed(t, path)
		if s.fake.Calls() == scans {
			t.Error("opened without a scan, with a writer there")
		}
	}
}

// serveAsChanger runs the changer if this process is to be one.
func serveAsChanger(out io.Writer) (served bool, err error) {
	if os.Getenv(changerVariable) == "" {
		return false, nil
	}
	return true, serveChanges(os.Stdin, out)
}
