package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
)

// fill appends n records: odd ones of tenant a that are denied, even ones of
// tenant b that are allowed.
func fill(l *audit.Log, n int) {
	for i := range n {
		r := audit.Record{Tenant: "a", Op: "exec", Decision: "deny", Container: audit.Container{ID: "aaa1", Name: "web"}}
		if i%2 == 1 {
			r = audit.Record{Tenant: "b", Op: "open", Decision: "allow", Container: audit.Container{ID: "bbb2", Name: "aaa"}}
		}
		l.Append(r)
	}
}

func TestEventsFilter(t *testing.T) {
	b := newBackend(t)
	fill(b.log, 6)
	client := NewClient(serve(t, b))
	tests := []struct {
		name   string
		filter EventFilter
		want   []uint64
	}{
		{"everything", EventFilter{}, []uint64{1, 2, 3, 4, 5, 6}},
		{"since", EventFilter{Since: 5}, []uint64{5, 6}},
		{"from now", EventFilter{Since: audit.FromNow}, nil},
		{"tenant", EventFilter{Tenant: "b"}, []uint64{2, 4, 6}},
		{"no such tenant", EventFilter{Tenant: "c"}, nil},
		{"decision", EventFilter{Decision: "deny"}, []uint64{1, 3, 5}},
		{"operation", EventFilter{Op: "exec"}, []uint64{1, 3, 5}},
		{"no such operation", EventFilter{Op: "dirty"}, nil},
		{"container id", EventFilter{Container: "bbb2"}, []uint64{2, 4, 6}},
		{"start of a container id", EventFilter{Container: "aaa1"[:2]}, []uint64{1, 3, 5}},
		{"start of one, name of another", EventFilter{Container: "aaa"}, []uint64{1, 2, 3, 4, 5, 6}},
		{"start of a name", EventFilter{Container: "we"}, nil},
		{"all at once", EventFilter{Tenant: "a", Container: "web", Decision: "deny", Since: 2}, []uint64{3, 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []uint64
			for e, err := range client.Events(t.Context(), tt.filter) {
				if err != nil || e.Lost != 0 {
					t.Fatalf("event %+v, %v", e, err)
				}
				got = append(got, e.Seq)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestEventsTellOfLostOnes(t *testing.T) {
	b := newBackend(t)
	fill(b.log, 12) // of which 8 are kept
	b.log.Append(audit.Record{Tenant: "a", Time: time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC)})
	c := dial(t, serve(t, b))
	sendRaw(t, c, "GET /v1/events?since=2&tenant=a HTTP/1.0\r\n\r\n")
	resp, body := receive(t, c)
	if resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("header %v", resp.Header)
	}
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	if len(lines) != 5 || lines[0] != `{"lost":4}` || !strings.Contains(lines[1], `"seq":7`) || lines[4] != `{"lost":1}` {
		t.Errorf("got %q, want 4 lost, then 7, 9 and 11 of tenant a, then the one that JSON cannot express", lines)
	}
}

// TestEventsAfterARestart: numbers go on, and what an earlier process has numbered
// is missed like what was overwritten.
func TestEventsAfterARestart(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	tally := filepath.Join(dir, "records.tally")
	before := newTalliedBackend(t, tally)
	fill(before.log, 1000)
	if err := before.log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := newTalliedBackend(t, tally)
	path := serve(t, b)
	for _, since := range []string{"", "now", "998", "1001", "5000"} {
		wantEvents(t, path, since) // ends, although nothing is kept
	}
	fill(b.log, 3)
	for since, want := range map[string][]string{
		"":     {`"seq":1001`, `"seq":1002`, `"seq":1003`},
		"now":  {},
		"998":  {`{"lost":3}`, `"seq":1001`, `"seq":1002`, `"seq":1003`},
		"1001": {`"seq":1001`, `"seq":1002`, `"seq":1003`},
		"1003": {`"seq":1003`},
		"1004": {},
		"5000": {`"seq":1001`, `"seq":1002`, `"seq":1003`},
	} {
		wantEvents(t, path, since, want...)
	}
}

// wantEvents checks what the lines of a reply contain.
func wantEvents(t *testing.T, path, since string, want ...string) {
	t.Helper()
	c := dial(t, path)
	sendRaw(t, c, "GET /v1/events?since="+since+" HTTP/1.0\r\n\r\n")
	_, body := receive(t, c)
	lines := slices.Collect(strings.Lines(body))
	if !slices.EqualFunc(lines, want, strings.Contains) {
		t.Errorf("since=%s: %q, want %q", since, lines, want)
	}
}

func TestFollow(t *testing.T) {
	b := newBackend(t)
	fill(b.log, 2)
	s := newServer(t, b)
	path := socketPath(t)
	serveAt(t, path, s)
	var seqs []uint64
	var last error
	for e, err := range NewClient(path).Events(t.Context(), EventFilter{Follow: true}) {
		if err != nil {
			last = err
			continue
		}
		seqs = append(seqs, e.Seq)
		switch {
		case e.Seq < 2:
		case e.Seq < 5:
			fill(b.log, 1) // comes only if what is here was flushed
		default:
			go s.Shutdown(context.Background()) //nolint:errcheck // the test's end reports it
		}
	}
	if !slices.Equal(seqs, []uint64{1, 2, 3, 4, 5}) || !errors.Is(last, ErrUnreachable) {
		t.Errorf("got %v and %v, want 1 to 5 and ErrUnreachable", seqs, last)
	}
}

func TestFollowTellsThatItIsSubscribed(t *testing.T) {
	b := newBackend(t)
	c := dial(t, serve(t, b))
	sendRaw(t, c, "GET /v1/events?follow=true&since=now HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 200 OK"))); err != nil {
		t.Fatal(err) // nothing was appended, and yet the header must come
	}
	if n := b.log.Status().Subscribers; n != 1 {
		t.Errorf("%d subscribers, want 1", n)
	}
}

func TestLeavingTheLoopHangsUp(t *testing.T) {
	b := newBackend(t)
	fill(b.log, 4)
	for e, err := range NewClient(serve(t, b)).Events(t.Context(), EventFilter{Follow: true}) {
		if err != nil || e.Seq != 1 {
			t.Fatalf("event %+v, %v", e, err)
		}
		break
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	b := newBackend(t)
	fill(b.log, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range NewClient(serve(t, b)).Events(ctx, EventFilter{Follow: true}) {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("the last error is %v", last)
	}
}

func TestEventsOfABrokenStream(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	tests := []struct {
		name, reply string
		unreachable bool
	}{
		{"half a line", ok + `{"seq":1`, true},
		{"not JSON", ok + "hello\n", false},
		{"unknown reason", ok + `{"reason":"because"}` + "\n", false},
		{"refused", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{\"error\":\"no\"}", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			for _, err := range NewClient(answer(t, tt.reply)).Events(t.Context(), EventFilter{}) {
				n++
				if err == nil || errors.Is(err, ErrUnreachable) != tt.unreachable {
					t.Errorf("error %v, want unreachable %v", err, tt.unreachable)
				}
			}
			if n != 1 {
				t.Errorf("%d elements, want only the error", n)
			}
		})
	}
}

// A client that does not read delays neither records nor the agent's end.
func TestStoppedFollower(t *testing.T) {
	b := newBackend(t)
	s := newServer(t, b)
	path := socketPath(t)
	serveAt(t, path, s)
	c := dial(t, path)
	b.log.Append(audit.Record{Detail: strings.Repeat("x", 4<<20)}) // more than a socket holds
	sendRaw(t, c, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n")
	// Once the first of the record is here, the server is stuck with the rest.
	if _, err := bufio.NewReaderSize(c, 16).ReadString('{'); err != nil {
		t.Fatal(err)
	}
	fill(b.log, 1000)
	if st := b.log.Status(); st.LostToSubs != 992 || st.Subscribers != 1 {
		t.Errorf("Status() = %+v, want 992 records lost to the subscriber", st)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown() = %v", err)
	}
	if st := b.log.Status(); st.Subscribers != 0 {
		t.Errorf("Status() after the end = %+v", st)
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, seed := range []string{
		"", "follow=1&since=now", "since=18446744073709551615", "since=7&tenant=a%20b&container=c&decision=deny", "op=dirty", "op=scan", "op=close", "follow=maybe", "%zz", "x=1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		parse := func(raw string) (EventFilter, error) {
			return parseFilter(&http.Request{URL: &url.URL{RawQuery: raw}})
		}
		filter, err := parse(raw)
		if err != nil {
			return
		}
		if again, err := parse(filter.values().Encode()); err != nil || again != filter {
			t.Fatalf("%q: %+v became %+v, %v", raw, filter, again, err)
		}
	})
}

func FuzzEachLine(f *testing.F) {
	f.Add([]byte("{\"lost\":3}\n{\"seq\":9,\"reason\":\"clean\"}\n"))
	f.Add([]byte("{\"seq\":1"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		events := 0
		left, err := eachLine(strings.NewReader(string(stream)), func(_ Event, err error) bool {
			if err != nil {
				t.Fatal(err)
			}
			events++
			return true
		})
		if lines := strings.Count(string(stream), "\n"); left || events > lines || err == nil && events != lines {
			t.Fatalf("%d events from %d lines, left %v, error %v", events, lines, left, err)
		}
	})
}
