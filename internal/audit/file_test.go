package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A tap tells of every attempt to write a line.
type tap struct {
	*recordFile
	attempt func(error)
}

func (t tap) Write(line []byte) (int, error) {
	n, err := t.recordFile.Write(line)
	t.attempt(err)
	return n, err
}

// readSeqs returns the sequence numbers in a record file, all of whose lines
// must be whole.
func readSeqs(t *testing.T, path string) []uint64 {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		t.Errorf("%s ends with a torn line", path)
	}
	var seqs []uint64
	for line := range bytes.Lines(data) {
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			t.Fatalf("%s: line %q: %v", path, line, err)
		}
		seqs = append(seqs, rec.Seq)
	}
	return seqs
}

// wantSeqs checks that seqs are all numbers from first on, n of them.
func wantSeqs(t *testing.T, seqs []uint64, first uint64, n int) {
	t.Helper()
	if len(seqs) != n {
		t.Fatalf("%d records in the file, want %d", len(seqs), n)
	}
	for i, seq := range seqs {
		if seq != first+uint64(i) {
			t.Fatalf("record %d has seq %d, want %d", i, seq, first+uint64(i))
		}
	}
}

func TestRecordFileRefusesWhatIsNotAFile(t *testing.T) {
	dir := t.TempDir()
	fifo, link, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"fifo", fifo, "not a regular file"},
		{"symbolic link", link, "not a regular file"},
		{"directory", dir, "not a regular file"},
		{"device", "/dev/full", "not a regular file"},
		{"relative", "events.jsonl", "not an absolute path"},
		{"below a file", filepath.Join(file, "events.jsonl"), "not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := NewLog(Options{File: tt.path})
			if err == nil {
				_ = l.Close(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewLog = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestRecordFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", "assay", "events.jsonl")
	l, err := NewLog(Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	appendN(l, 3)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o750} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm()&^want != 0 {
			t.Errorf("%s has mode %v, %v; want %v", p, info.Mode().Perm(), err, want)
		}
	}
	wantSeqs(t, readSeqs(t, path), 1, 3)
	if st := l.Status(); st.Written != 3 || st.Lost != 0 || st.Pending != 0 || st.File != path || st.Error != "" {
		t.Errorf("Status() = %+v", st)
	}
}

func TestRecordFileRotates(t *testing.T) {
	const records, size = 30, 200 << 10 // 6 MB in files of 1 MiB
	dir := t.TempDir()
	l, err := NewLog(Options{File: filepath.Join(dir, "events.jsonl"), MaxSize: 1, KeepFiles: 2})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", size)
	for range records {
		l.Append(Record{Detail: long})
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitForFiles(t, dir, 3)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var last []uint64
	for _, e := range entries { // events-TIME.jsonl in order, then events.jsonl
		info, err := e.Info()
		if err != nil || info.Size() > mebibyte || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v, %v", e.Name(), info.Size(), info.Mode(), err)
		}
		last = append(last, readSeqs(t, filepath.Join(dir, e.Name()))...)
	}
	wantSeqs(t, last, records-uint64(len(last))+1, len(last))
}

func TestTornLineIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(path, []byte("{\"seq\":1}\n{\"seq\":2}\n{\"seq\":3,\"pa"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openRecordFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("{\"seq\":3}\n")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantSeqs(t, readSeqs(t, path), 1, 3)
}

func TestForeignFileIsNotCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	content := bytes.Repeat([]byte{7}, maxLine+1)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openRecordFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("{}\n")); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("Write = %v, want a refusal", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
		t.Errorf("the file was changed (%v)", err)
	}
}

func TestFIFOPutInPlaceLaterDoesNotBlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	f, err := openRecordFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("{}\n")); !errors.Is(err, errNotRegular) {
		t.Errorf("Write = %v, want %v", err, errNotRegular)
	}
}

func TestFullDisk(t *testing.T) {
	const records = 200
	dir := smallTmpfs(t)
	path := filepath.Join(dir, "events.jsonl")
	f, err := openRecordFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	// A file that comes from a rotation is not open for appending: the write
	// after a cut must open it anew.
	if err := f.rot.Rotate(); err != nil {
		t.Fatal(err)
	}
	full, written := make(chan struct{}), make(chan struct{})
	good, bad := 0, 0
	l := startLog(t, records, tap{f, func(err error) {
		if err == nil {
			good++
		} else {
			bad++
		}
		switch {
		case err != nil && bad == 2: // the first failure is in the status by now
			close(full)
		case err == nil && good == records:
			close(written)
		}
	}})
	appendN(l, records)
	<-full
	if st := l.Status(); st.Written == 0 || st.Pending == 0 || st.Lost != 0 || !strings.Contains(st.Error, "no space left") {
		t.Errorf("Status() on a full disk = %+v", st)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	<-written
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if st := l.Status(); st.Written != records || st.Pending != 0 || st.Lost != 0 || st.Error != "" {
		t.Errorf("Status() after there was room = %+v", st)
	}
	wantSeqs(t, readSeqs(t, path), 1, records)
}

func TestFullDiskAtTheEnd(t *testing.T) {
	const records = 200
	dir := smallTmpfs(t)
	path := filepath.Join(dir, "events.jsonl")
	l, err := NewLog(Options{File: path, Keep: records})
	if err != nil {
		t.Fatal(err)
	}
	appendN(l, records)
	err = l.Close(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Close() = %v, want the loss and its cause", err)
	}
	st := l.Status()
	if st.Written == 0 || st.Lost == 0 || st.Written+st.Lost != records || st.Pending != 0 {
		t.Errorf("Status() = %+v", st)
	}
	wantSeqs(t, readSeqs(t, path), 1, int(st.Written))
}

// startLog starts a log that writes to out and retries at once.
func startLog(t *testing.T, keep int, out io.WriteCloser) *Log {
	t.Helper()
	l, err := NewLog(Options{Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	l.writer = newWriter(l, out, "events.jsonl", slog.New(slog.DiscardHandler))
	l.writer.retry = 1
	go l.writer.run()
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}

// smallTmpfs mounts a file system of 16 KiB.
func smallTmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// waitForFiles waits until dir has no more than n files. Old files are removed
// by a goroutine of lumberjack's that tells nobody, so the kernel is asked.
func waitForFiles(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) <= n {
			return
		}
		if _, err := unix.Read(fd, make([]byte, 4096)); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}
