package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/e2e/harness"
)

// remembered starts an agent whose store holds the verdicts of everything that
// everyRead opens with this engine.
func remembered(t *testing.T, e harness.Engine) *harness.Agent {
	t.Helper()
	agent := suite.StartAgent(t, anyHash(t, "scanAhead: \"off\""))
	wantEveryRead(t, e.Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
	agent.AwaitIdle(t)
	agent.AwaitStored(t, uint64(agent.Verdicts(t).Cache.Files)) //nolint:gosec // a handful
	return agent
}

// TestRestart: what was judged before the agent's end, good or bad, is known after it.
func TestRestart(t *testing.T) {
	for _, end := range ends() {
		for _, e := range []harness.Engine{suite.Podman("runc"), suite.Runc()} {
			t.Run(end.name+"/"+e.Name(), func(t *testing.T) {
				agent := remembered(t, e)
				before := agent.Verdicts(t)
				end.how(agent, t)
				agent.Restart(t)

				after := agent.Verdicts(t)
				if fmt.Sprint(after.Layers()) != fmt.Sprint(before.Layers()) || after.Store.Restored != before.Cache.Files {
					t.Errorf("verdicts after the restart\n%+v, before\n%+v", after, before)
				}
				wantNoScans(t, agent, "container after the restart", func() {
					wantEveryRead(t, e.Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
				})
				if s := agent.Status(t); !s.Healthy || s.Store.Damage != "" {
					t.Errorf("the agent complains: %q, store %+v", s.Problems, s.Store)
				}
			})
		}
	}
}

// TestRecordsOfAKilledAgent: the records that it had not written are counted by the
// next agent, whose numbers go on.
func TestRecordsOfAKilledAgent(t *testing.T) {
	dir := suite.Scratch(t)
	mountSmall(t, dir)
	file := filepath.Join(dir, "events.jsonl")
	agent := suite.StartAgent(t, "records: {file: "+file+"}\n"+anyHash(t, "scanAhead: \"off\""))
	spec := harness.Spec{Args: everyRead(), Gate: agent.Gate("")}
	wantEveryRead(t, suite.Runc().Run(t, spec))
	agent.AwaitIdle(t)
	harness.Eventually(t, "the agent has written its records", func() error {
		if r := agent.Status(t).Records; r.Pending > 0 || r.Written == 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	written := agent.Status(t).Records.Written
	// From here on nothing fits into the file.
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the directory could not be filled: %v", err)
	}
	for range 5 {
		wantEveryRead(t, suite.Runc().Run(t, spec))
	}
	agent.AwaitIdle(t)
	last := agent.Status(t).Records
	records := last.Written + last.Pending
	agent.Kill(t)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}

	agent.Restart(t)
	lines := uint64(bytes.Count(content(t, file), []byte("\n"))) //nolint:gosec // hundreds
	if lost := agent.Status(t).Records.LostAtCrash; lines < written || lost == 0 || lines+lost != records {
		t.Errorf("%d records, %d of them in the file and %d counted as lost", records, lines, lost)
	}
	if !strings.Contains(agent.Log(t), "records were lost with the last process") {
		t.Error("the log does not tell of the loss")
	}
	wantEveryRead(t, suite.Runc().Run(t, spec))
	if first := agent.AwaitRecord(t, "anything", func(harness.Record) bool { return true }); first.Seq != records+1 {
		t.Errorf("the first record after %d has number %d", records, first.Seq)
	}
}

// mountSmall mounts a file system that is soon full.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the records' directory: %v", err)
		}
	})
}

// TestStoredGeneration: verdicts of a list that was replaced while the agent was away
// are worth nothing.
func TestStoredGeneration(t *testing.T) {
	list := suite.AnyHash(t)
	agent := suite.StartAgent(t, harness.HashScanner(list)+"tenants:\n"+harness.Tenant("default", "{}", "hashes", "scanAhead: \"off\""))
	spec := harness.Spec{Args: everyRead(), Gate: agent.Gate("")}
	wantEveryRead(t, suite.Runc().Run(t, spec))
	agent.AwaitIdle(t)
	agent.Stop(t)
	appendTo(t, list, harness.HashLine([]byte(harness.CleanText), "Assay.Test.News"))
	agent.Restart(t)

	r := suite.Runc().Run(t, spec)
	wantRead(t, r, harness.CleanFile+": EPERM", harness.NextToBad+": 10 bytes", harness.BadFile+": EPERM", harness.TopFile+": 18 bytes")
	if n := scansAfter(t, agent); n < 5 {
		t.Errorf("%d scans, want one of each file", n)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What may have happened to a store while the agent was away.
type damage struct {
	name string
	do   func(t *testing.T, file string)
	// said is part of what the agent says of it: as damage, or as the error.
	said    string
	isError bool // verdicts will not survive a restart either
	some    bool // of the verdicts may still be believed
	kept    bool // the file stays as it is
}

func damages() []damage {
	return []damage{
		{name: "bits flipped everywhere", said: "damaged", do: rewrite(func(b []byte) []byte {
			for i := 512; i < len(b); i += 16 {
				b[i] ^= 0x10
			}
			return b
		})},
		{name: "one bit flipped", said: "damaged", some: true, do: rewrite(func(b []byte) []byte {
			b[len(b)-len(bytes.TrimRight(b, "\x00"))+700] ^= 1
			return b
		})},
		{name: "malicious turned clean", said: "damaged", some: true, do: rewrite(absolve)},
		{name: "header flipped", said: "damaged", do: rewrite(func(b []byte) []byte { b[3] ^= 1; return b })},
		{name: "identity flipped", said: "damaged", do: rewrite(func(b []byte) []byte { b[30] ^= 1; return b })},
		{name: "cut short in a block", said: "damaged", some: true, do: rewrite(func(b []byte) []byte { return b[:600] })},
		{name: "cut short in the header", said: "damaged", do: rewrite(func(b []byte) []byte { return b[:100] })},
		{name: "zeroed", said: "damaged", do: rewrite(func(b []byte) []byte { return make([]byte, len(b)) })},
		{name: "something else", said: "damaged", do: rewrite(func([]byte) []byte { return bytes.Repeat([]byte("no verdicts\n"), 1000) })},
		{name: "of a newer version", said: "newer version", isError: true, kept: true, do: rewrite(newer)},
		{name: "writable for all", said: "others could have written", isError: true, kept: true, do: func(t *testing.T, file string) {
			t.Helper()
			if err := os.Chmod(file, 0o666); err != nil { //nolint:gosec // the point of it
				t.Fatal(err)
			}
		}},
		{name: "a FIFO", said: "no regular file", isError: true, do: func(t *testing.T, file string) {
			t.Helper()
			if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// rewrite changes a file's content.
func rewrite(change func([]byte) []byte) func(*testing.T, string) {
	return func(t *testing.T, file string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, change(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// absolve turns the record of the malicious file, found by the file's size, into one of
// a clean file: what an attacker would do who does not know of checksums.
func absolve(text []byte) []byte {
	const sizeAt, malicious, clean = 8, 2, 1
	size := binary.LittleEndian.AppendUint64(nil, uint64(len(harness.EICAR())))
	for at := 512; ; at++ {
		i := bytes.Index(text[at:], size)
		if i < 0 {
			panic("no record of the malicious file")
		}
		at += i
		if text[at-sizeAt] == malicious {
			text[at-sizeAt] = clean
			return text
		}
	}
}

// newer makes the file one of the next version.
func newer(text []byte) []byte {
	binary.LittleEndian.PutUint32(text[16:], binary.LittleEndian.Uint32(text[16:])+1)
	binary.LittleEndian.PutUint32(text[20:], crc32.Checksum(text[:20], crc32.MakeTable(crc32.Castagnoli)))
	return text
}

// TestStoreDamaged: a store that cannot be believed is not; the agent starts, says what
// is wrong, and scans instead.
func TestStoreDamaged(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			agent := remembered(t, suite.Runc())
			before := agent.Verdicts(t)
			agent.Stop(t)
			file := before.Store.File
			d.do(t, file)
			left := content(t, file)
			agent.Restart(t)

			wantEveryRead(t, suite.Runc().Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
			scans := scansAfter(t, agent)
			s := agent.Status(t)
			if scans == 0 || !d.some && (s.Store.Restored > 0 || int(scans) < before.Cache.Files) { //nolint:gosec // a handful
				t.Errorf("%d scans and %d verdicts restored: something of this store was believed: %+v", scans, s.Store.Restored, s.Store)
			}
			if s.Store.Restored >= before.Cache.Files {
				t.Errorf("all %d verdicts were restored, want some to be missing", s.Store.Restored)
			}
			said := s.Store.Damage
			if d.isError {
				said = s.Store.Error
			}
			if !strings.Contains(said, d.said) || !strings.Contains(agent.Log(t), d.said) {
				t.Errorf("want %q in the status and in the log: %+v", d.said, s.Store)
			}
			if d.isError == s.Healthy || d.isError == s.Store.Healthy {
				t.Errorf("want verdicts that survive to be as good as health: %q, %+v", s.Problems, s.Store)
			}
			if d.kept && !bytes.Equal(content(t, file), left) {
				t.Error("the file was changed, and the agent had said that it would not use it")
			}
			if !d.isError {
				wantSurvives(t, agent)
			}
		})
	}
}

// content returns a regular file's bytes.
func content(t *testing.T, file string) []byte {
	t.Helper()
	if info, err := os.Lstat(file); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// wantSurvives fails t unless what the agent knows now is known after a restart.
func wantSurvives(t *testing.T, agent *harness.Agent) {
	t.Helper()
	known := agent.Verdicts(t).Cache.Files
	agent.Stop(t)
	agent.Restart(t)
	if v := agent.Verdicts(t); v.Cache.Files != known || v.Store.Damage != "" || !v.Store.Healthy {
		t.Errorf("after another restart %d files are known and the store is %+v, want %d", v.Cache.Files, v.Store, known)
	}
}

// mountState mounts a filesystem on the agent's state directory.
func mountState(t *testing.T, agent *harness.Agent, source, fstype string, flags uintptr, options string) {
	t.Helper()
	dir := agent.State()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, dir, fstype, flags&^unix.MS_RDONLY, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the state directory: %v", err)
		}
	})
	if flags&unix.MS_RDONLY != 0 {
		if err := unix.Mount("", dir, "", flags|unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStateReadOnly: verdicts of a read-only state directory are used, new ones are not
// kept, and the agent says so.
func TestStateReadOnly(t *testing.T) {
	t.Run("with verdicts", func(t *testing.T) {
		agent := remembered(t, suite.Runc())
		known := agent.Verdicts(t).Cache.Files
		agent.Stop(t)
		mountState(t, agent, agent.State(), "", unix.MS_BIND|unix.MS_RDONLY, "")
		agent.Restart(t)
		wantNoScans(t, agent, "container of what is known", func() {
			wantEveryRead(t, suite.Runc().Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
		})
		wantReadOnly(t, agent, known)
		agent.Stop(t)
	})
	t.Run("empty", func(t *testing.T) {
		agent := suite.StartAgent(t, anyHash(t))
		agent.Stop(t)
		mountState(t, agent, "tmpfs", "tmpfs", unix.MS_RDONLY, "mode=0700")
		agent.Restart(t)
		wantEveryRead(t, suite.Runc().Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
		wantReadOnly(t, agent, 0)
		agent.Stop(t)
	})
}

// wantReadOnly fails t unless the agent has restored so many verdicts and says that new
// ones will not survive. What it learns now is still remembered while it runs.
func wantReadOnly(t *testing.T, agent *harness.Agent, restored int) {
	t.Helper()
	read := harness.Spec{Args: []string{"guest", "read", "/data/many/00", "/data/many/01"}, Gate: agent.Gate("")}
	want := []string{"/data/many/00: 7 bytes", "/data/many/01: 7 bytes"}
	wantRead(t, suite.Runc().Run(t, read), want...)
	wantNoScans(t, agent, "second container", func() { wantRead(t, suite.Runc().Run(t, read), want...) })
	harness.Eventually(t, "the agent says that its state is read-only", func() error {
		s := agent.Status(t)
		if s.Healthy || s.Store.Restored != restored || !strings.Contains(s.Store.Error, "read-only") ||
			!slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "read-only") }) {
			return fmt.Errorf("problems %q, store %+v", s.Problems, s.Store)
		}
		return nil
	})
}

// TestStateFull: without space for verdicts the agent works, and says so until it is
// restarted with space.
func TestStateFull(t *testing.T) {
	t.Run("from the start", func(t *testing.T) {
		agent := suite.StartAgent(t, anyHash(t))
		agent.Stop(t)
		mountState(t, agent, "tmpfs", "tmpfs", 0, "mode=0700,size=64k")
		fillState(t, agent)
		agent.Restart(t)
		wantFull(t, agent, suite.Runc(), harness.Spec{Args: everyRead(), Gate: agent.Gate("")})
		agent.Stop(t)
	})
	t.Run("while it runs", func(t *testing.T) {
		agent := suite.StartAgent(t, anyHash(t))
		agent.Stop(t)
		mountState(t, agent, "tmpfs", "tmpfs", 0, "mode=0700,size=256k")
		agent.Restart(t)
		free := fillState(t, agent)
		// More verdicts than a page holds, which the file has already.
		layer := map[string]string{harness.BadFile: string(harness.EICAR()), harness.NextToBad: "clean too\n", harness.TopFile: "the topmost layer\n"}
		for i := range 500 {
			layer[fmt.Sprintf("/data/%d", i)] = fmt.Sprintln("file", i)
		}
		image := suite.Pull(t, "large", layer)
		wantFull(t, agent, suite.Podman("runc"), harness.Spec{Args: everyRead(), Gate: agent.Gate(""), Image: image.ID})

		agent.Stop(t)
		free()
		agent.Restart(t)
		wantEveryRead(t, suite.Runc().Run(t, harness.Spec{Args: everyRead(), Gate: agent.Gate("")}))
		agent.AwaitAhead(t, 3)
		if s := agent.Status(t); !s.Healthy {
			t.Errorf("with space the agent still complains: %q", s.Problems)
		}
		wantSurvives(t, agent)
		agent.Stop(t)
	})
}

// fillState leaves no space in the state directory until free is called.
func fillState(t *testing.T, agent *harness.Agent) (free func()) {
	t.Helper()
	ballast := filepath.Join(agent.State(), "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the state directory could not be filled: %v", err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// wantFull fails t unless the agent judges and remembers what the container opens, and
// says that it cannot store it.
func wantFull(t *testing.T, agent *harness.Agent, e harness.Engine, spec harness.Spec) {
	t.Helper()
	wantEveryRead(t, e.Run(t, spec))
	agent.AwaitAhead(t, 2)
	wantNoScans(t, agent, "second container", func() { wantEveryRead(t, e.Run(t, spec)) })
	harness.Eventually(t, "the agent says that its state directory is full", func() error {
		if s := agent.Status(t); s.Healthy || !strings.Contains(s.Store.Error, "no space is left") {
			return fmt.Errorf("problems %q, store %+v", s.Problems, s.Store)
		}
		return nil
	})
}
