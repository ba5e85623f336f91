package audit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBlockedWriterDelaysNoAppend(t *testing.T) {
	const keep, records = 64, 20_000 // far more than a pipe holds
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := startLog(t, keep, w)
	for range records { // returns although nobody reads the pipe
		l.Append(Record{Path: strings.Repeat("p", 100)})
	}
	st := l.Status()
	if st.Lost == 0 || st.Pending < keep || st.Pending > keep+1 || st.Written+st.Pending+st.Lost != records {
		t.Errorf("Status() = %+v, want every one of %d records written, pending or lost", st, records)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close() = %v, want it to give up with its context", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "never reached it") {
		t.Errorf("Close() = %v, want the loss", err)
	}
	if st := l.Status(); st.Written+st.Lost != records || st.Pending != 0 {
		t.Errorf("Status() after the end = %+v", st)
	}
}

func TestDevFull(t *testing.T) {
	const records = 10
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := startLog(t, 64, f)
	appendN(l, records)
	if err := l.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Close() = %v, want the loss", err)
	}
	if st := l.Status(); st.Lost != records || st.Written != 0 || !strings.Contains(st.Error, "no space left") {
		t.Errorf("Status() = %+v, want %d lost", st, records)
	}
	appendN(l, 1)
	if st := l.Status(); st.Lost != records+1 {
		t.Errorf("a record after Close counts as %+v, want it lost", st)
	}
}

func TestRecordTooLongForTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l, err := NewLog(Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	l.Append(Record{Detail: strings.Repeat("x", maxLine)})
	appendN(l, 1)
	if err := l.Close(t.Context()); err == nil {
		t.Error("Close() reports no loss")
	}
	wantSeqs(t, readSeqs(t, path), 2, 1)
	if st := l.Status(); st.Written != 1 || st.Lost != 1 {
		t.Errorf("Status() = %+v, want one written and one lost", st)
	}
}

func TestTroubleIsLoggedOnceInAWhile(t *testing.T) {
	var logged bytes.Buffer
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLog(Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.writer = newWriter(l, f, "events.jsonl", slog.New(slog.NewTextHandler(&logged, nil)))
	appendN(l, 20)
	go l.writer.run()
	if err := l.Close(t.Context()); err == nil {
		t.Error("Close() reports no loss")
	}
	if got := logged.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "no space left") {
		t.Errorf("logged:\n%s\nwant one line with the cause", got)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Now()
	l := limiter{every: time.Minute}
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, false}, {59 * time.Second, false}, {time.Second, true}, {time.Second, false}, {time.Hour, true}} {
		now = now.Add(step.after)
		if got := l.ready(now); got != step.want {
			t.Errorf("ready after another %v = %v", step.after, got)
		}
	}
}

func FuzzEndOfLastLine(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("{}\n{}"))
	f.Add([]byte("{}\n"))
	f.Add([]byte("torn"))
	f.Fuzz(func(t *testing.T, data []byte) {
		end, err := endOfLastLine(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if bytes.IndexByte(data, '\n') >= 0 && len(data) <= maxLine {
				t.Fatal(err)
			}
			return
		}
		if end < 0 || end > int64(len(data)) || end > 0 && data[end-1] != '\n' || bytes.IndexByte(data[end:], '\n') >= 0 {
			t.Fatalf("the last line of %q ends at %d", data, end)
		}
	})
}
