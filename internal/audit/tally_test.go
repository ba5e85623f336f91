package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// memory mounts a file system in memory.
func memory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// tallied returns a log without a file that counts at path, and what it has
// said; the caller closes it.
func tallied(t *testing.T, path string) (l *Log, said *bytes.Buffer) {
	t.Helper()
	said = new(bytes.Buffer)
	l, err := NewLog(Options{Keep: 4, Tally: path, Logger: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l, said
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestAnnounced: an event that was answered by a process that ended before it could
// append the record is missed by the next one.
func TestAnnounced(t *testing.T) {
	path := filepath.Join(memory(t), "records.tally")
	l, _ := tallied(t, path)
	l.Announce()
	l.AppendAnnounced(Record{})
	l.Announce()
	closeLog(t, l)
	next, said := tallied(t, path)
	if got := next.Status().LostAtCrash; got != 1 || !strings.Contains(said.String(), "records=1") {
		t.Errorf("%d records lost, want 1; the log says %s", got, said)
	}
}

func TestSeqGoesOnAfterARestart(t *testing.T) {
	path := filepath.Join(memory(t), "run", "records.tally")
	l, said := tallied(t, path)
	if !strings.Contains(said.String(), "numbered from 1") {
		t.Errorf("a new tally is not mentioned: %s", said)
	}
	appendN(l, 10)
	closeLog(t, l)
	appendN(l, 1) // late records harm nobody

	l, said = tallied(t, path)
	if said.Len() != 0 {
		t.Errorf("after a good end the log says %s", said)
	}
	s := subscribe(t, l, 0)
	late := subscribe(t, l, 8) // 7 was the last that this subscriber has seen
	if b := late.Behind(); b != 0 {
		t.Errorf("Behind() = %d although nothing is kept", b)
	}
	waiting := make(chan uint64)
	go func() {
		rec, lost, err := l.Subscribe(8).Next(t.Context())
		if err != nil || lost != 3 {
			t.Errorf("Next() = %d lost, %v, want it to wait and tell of 3", lost, err)
		}
		waiting <- rec.Seq
	}()
	appendN(l, 2)
	if seq := <-waiting; seq != 11 {
		t.Errorf("who waited got record %d, want 11", seq)
	}
	wantNext(t, s, 11, 0)
	wantNext(t, late, 11, 3)
	wantNext(t, late, 12, 0)
	wantNext(t, subscribe(t, l, 12), 12, 0)
	wantNext(t, subscribe(t, l, 5000), 11, 0)
	if b := late.Behind(); b != 0 {
		t.Errorf("Behind() = %d, want 0", b)
	}
	appendN(l, 5) // 11 to 13 are overwritten
	wantNext(t, subscribe(t, l, 0), 14, 0)
	wantNext(t, s, 14, 2)
	if st := l.Status(); st.LostAtCrash != 0 {
		t.Errorf("without a file %d records were lost at a crash, want none", st.LostAtCrash)
	}
}

// TestTallyNotUsable: what cannot be believed is begun anew, and the log says so.
func TestTallyNotUsable(t *testing.T) {
	good := func(t *testing.T, path string) []byte {
		t.Helper()
		l, _ := tallied(t, path)
		appendN(l, 10)
		closeLog(t, l)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	const version, appended, settled, noticed = 8, 24, 32, 40
	for name, tt := range map[string]struct {
		change func([]byte) []byte
		says   string
	}{
		"short":                 {func(b []byte) []byte { return b[:100] }, "bytes=100"},
		"long":                  {func(b []byte) []byte { return append(b, 0) }, "bytes=4097"},
		"zeros":                 {func(b []byte) []byte { return make([]byte, len(b)) }, "not a tally"},
		"other version":         {func(b []byte) []byte { b[version]++; return b }, "version 3, not 2"},
		"more settled":          {func(b []byte) []byte { b[settled] = 11; return b }, "do not go together"},
		"more lost":             {func(b []byte) []byte { b[noticed] = 1; return b }, "do not go together"},
		"more than can be":      {func(b []byte) []byte { b[appended+7] = 1; return b }, "do not go together"},
		"never counted anybody": {func([]byte) []byte { return nil }, "level=INFO"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(memory(t), "records.tally")
			if err := os.WriteFile(path, tt.change(good(t, path)), 0o600); err != nil {
				t.Fatal(err)
			}
			l, said := tallied(t, path)
			if !strings.Contains(said.String(), tt.says) || !strings.Contains(said.String(), "numbered from 1") {
				t.Errorf("the log says %s, want %q", said, tt.says)
			}
			s := subscribe(t, l, 0)
			appendN(l, 1)
			wantNext(t, s, 1, 0)
			closeLog(t, l)
			l, said = tallied(t, path)
			if said.Len() != 0 || l.Status().LostAtCrash != 0 {
				t.Errorf("the new tally is not usable: %s", said)
			}
		})
	}
}

// TestTallyCannotBeKept: the log works without, and says why; what stands there is
// left alone.
func TestTallyCannotBeKept(t *testing.T) {
	dir, disk := memory(t), t.TempDir()
	var mount unix.Statfs_t
	if err := unix.Statfs(disk, &mount); err != nil {
		t.Fatal(err)
	}
	at := func(name string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	text := []byte("somebody's\n")
	other := at("other", os.WriteFile(filepath.Join(dir, "other"), text, 0o600))
	tests := map[string]struct{ path, says string }{
		"link":         {at("link", os.Symlink("other", filepath.Join(dir, "link"))), "symbolic link"},
		"second name":  {at("second", os.Link(other, filepath.Join(dir, "second"))), "could have written it"},
		"FIFO":         {at("fifo", unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)), "not a regular file"},
		"directory":    {dir, "is a directory"},
		"below a file": {filepath.Join(other, "records.tally"), "not a directory"},
		"in use":       {filepath.Join(dir, "used"), "another process"},
	}
	if uint32(mount.Type) != unix.TMPFS_MAGIC { //nolint:gosec // 32 bits
		tests["disk"] = struct{ path, says string }{filepath.Join(disk, "records.tally"), "not on a file system in memory"}
	}
	tallied(t, tests["in use"].path)
	open := at("open", os.WriteFile(filepath.Join(dir, "open"), nil, 0o600))
	tests["open to all"] = struct{ path, says string }{open, "could have written it"}
	if err := os.Chmod(open, 0o666); err != nil { //nolint:gosec // the point of it
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, said := tallied(t, tt.path)
			if !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), tt.says) {
				t.Errorf("the log says %s, want a warning with %q", said, tt.says)
			}
			s := subscribe(t, l, 0)
			appendN(l, 1)
			wantNext(t, s, 1, 0)
		})
	}
	if now, err := os.ReadFile(other); err != nil || !bytes.Equal(now, text) {
		t.Errorf("another file was changed: %q, %v", now, err)
	}
}

// TestTallyWithoutRoom: a full file system costs the count, never the process.
func TestTallyWithoutRoom(t *testing.T) {
	dir := memory(t)
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system could not be filled: %v", err)
	}
	l, said := tallied(t, filepath.Join(dir, "records.tally"))
	if !strings.Contains(said.String(), "no space left") {
		t.Errorf("the log says %s", said)
	}
	appendN(l, 3)
}

// TestTallySettlesWhatTheLogCountsAsLost: overwritten records and those that the file
// would not take are known, and not lost with the process.
func TestTallySettlesWhatTheLogCountsAsLost(t *testing.T) {
	path := filepath.Join(memory(t), "records.tally")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLog(Options{Keep: 4, Tally: path})
	if err != nil {
		t.Fatal(err)
	}
	l.writer = newWriter(l, full, "events.jsonl", slog.New(slog.DiscardHandler))
	l.writer.retry = 1
	appendN(l, 50)
	go l.writer.run()
	if err := l.Close(t.Context()); err == nil {
		t.Error("Close() reports no loss")
	}
	if l, said := tallied(t, path); said.Len() != 0 || l.Status().LostAtCrash != 0 {
		t.Errorf("the next process finds %+v and says %s", l.Status(), said)
	}
}

// TestTallyAfterAnImpatientEnd: what Close did not wait for is counted by the next
// process, as after a crash.
func TestTallyAfterAnImpatientEnd(t *testing.T) {
	dir := memory(t)
	lost, last := endOf(t, dir, "impatient")
	if lost != childRecords+1 || last != childRecords+1 {
		t.Errorf("%d records lost of %d, want all of %d", lost, last, childRecords+1)
	}
}

func TestTallyDoesNotAllocate(t *testing.T) {
	l, _ := tallied(t, filepath.Join(memory(t), "records.tally"))
	rec := Record{Path: "/bin/true"}
	if n := testing.AllocsPerRun(1000, func() { l.Append(rec) }); n != 0 {
		t.Errorf("Append allocates %v times", n)
	}
}

// TestKilledProcess: each of the records that a killed process had taken is in the
// file or counted as lost.
func TestKilledProcess(t *testing.T) {
	for name, tt := range map[string]struct {
		how         string
		lines, lost int // -1: whatever was reached
	}{
		"before a write": {"before", 300, 700},
		// In the file, and not settled yet: the one that counts twice.
		"after a write": {"after", 301, 700},
		"at any moment": {"running", -1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := memory(t)
			lost, last := endOf(t, dir, tt.how)
			file := filepath.Join(dir, "events.jsonl")
			if err := dropTornLine(file); err != nil { // as the next process does
				t.Fatal(err)
			}
			lines := len(readSeqs(t, file))
			if last != childRecords || lines+lost < childRecords || lines+lost > childRecords+1 {
				t.Errorf("%d lines and %d lost of %d records (numbered to %d)", lines, lost, childRecords, last)
			}
			if tt.lines >= 0 && (lines != tt.lines || lost != tt.lost) {
				t.Errorf("%d lines and %d lost, want %d and %d", lines, lost, tt.lines, tt.lost)
			}
			// Another crash adds to it, and good ends do not.
			again, last := endOf(t, dir, "before")
			if again != lost+childRecords-300 || last != 2*childRecords {
				t.Errorf("after another crash %d lost of %d, want %d more than %d", again, last, childRecords-300, lost)
			}
			l, said := tallied(t, filepath.Join(dir, "records.tally"))
			if said.Len() != 0 || int(l.Status().LostAtCrash) != again { //nolint:gosec // thousands
				t.Errorf("after a good end: %+v, and the log says %s", l.Status(), said)
			}
		})
	}
}

// childRecords is how many records the child appends.
const childRecords = 1000

// childVariable says in the child's environment how it is to end.
const childVariable = "ASSAY_TEST_TALLY_END"

// endOf runs a child that logs to dir until it ends in the given way, and returns
// what the next log finds: records lost so far, and the last sequence number.
func endOf(t *testing.T, dir, how string) (lost, last int) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], dir)
	child.Env = append(os.Environ(), childVariable+"="+how)
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "now\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // killed
	l, said := tallied(t, filepath.Join(dir, "records.tally"))
	found := int(l.Status().LostAtCrash) //nolint:gosec // thousands
	if !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), fmt.Sprintf("all=%d ", found)) {
		t.Errorf("%d records are lost, and the log says %s", found, said)
	}
	closeLog(t, l)
	return found, int(l.next) - 1 //nolint:gosec // thousands
}

// A halting is a record file whose writer stops for ever, or is only slow.
type halting struct {
	io.WriteCloser
	how     string
	written int
	halted  chan struct{}
}

func (h *halting) Write(line []byte) (int, error) {
	at := map[string]int{"before": 300, "after": -1, "impatient": 0}[h.how]
	if h.how != "running" && h.written == at {
		h.halt()
	}
	n, err := h.WriteCloser.Write(line)
	h.written++
	switch {
	case h.how == "after" && h.written == 301:
		h.halt()
	case h.how == "running" && h.written == 50:
		close(h.halted) // from here on it runs against the signal
	}
	return n, err
}

func (h *halting) halt() {
	close(h.halted)
	select {}
}

// child appends its records to a log in dir, whose writer ends as the variable says,
// and waits for its end.
func child(dir, how string) error {
	l, err := NewLog(Options{Tally: filepath.Join(dir, "records.tally")})
	if err != nil {
		return err
	}
	f, err := openRecordFile(filepath.Join(dir, "events.jsonl"), 0, 0)
	if err != nil {
		return err
	}
	h := &halting{WriteCloser: f, how: how, halted: make(chan struct{})}
	l.writer = newWriter(l, h, "events.jsonl", slog.New(slog.DiscardHandler))
	appendN(l, childRecords)
	go l.writer.run()
	<-h.halted
	if how == "impatient" {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := l.Close(ctx); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("Close() = %w", err)
		}
		appendN(l, 1) // the writer still counts, and so does the log
	}
	fmt.Fprintln(os.Stdout, "now")
	select {}
}
