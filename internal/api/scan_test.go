package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
)

// refusePost fails the test unless the server refuses a POST with status 400.
func refusePost(t *testing.T, socket, path, body, want string) {
	t.Helper()
	c := dial(t, socket)
	sendRaw(t, c, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body))
	resp, got := receive(t, c)
	wantRefusal(t, resp, got, http.StatusBadRequest, want)
}

// progress is a line that only counts.
func progress(done int64) ScanLine {
	return ScanLine{Progress: &ScanProgress{Files: 9, FilesDone: done}}
}

func TestScan(t *testing.T) {
	b := newBackend(t)
	var got ScanRequest
	b.scan = func(_ context.Context, req ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
		got = req
		return ScanTotals{Files: 9}, errors.Join(
			emit(progress(1)),
			emit(ScanLine{Finding: &ScanFinding{Path: "/a<b", Verdict: "malicious"}}),
			emit(ScanLine{Error: &ScanError{Path: "/c", Error: "gone"}}),
		)
	}
	want := ScanRequest{Kind: ScanImage, Name: "shop:1", Tenant: "payments"}
	var lines []ScanLine
	for line, err := range NewClient(serve(t, b)).Scan(t.Context(), want) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if got != want {
		t.Errorf("the backend got %+v", got)
	}
	wantLines := []ScanLine{
		progress(1),
		{Finding: &ScanFinding{Path: "/a<b", Verdict: "malicious", Scanners: []audit.Scanner{}}},
		{Error: &ScanError{Path: "/c", Error: "gone"}},
		{Done: &ScanTotals{Files: 9}},
	}
	if !reflect.DeepEqual(lines, wantLines) {
		t.Errorf("got %+v, want %+v", lines, wantLines)
	}
}

func TestScanIsRefused(t *testing.T) {
	b := newBackend(t)
	b.scan = func(_ context.Context, req ScanRequest, _ func(ScanLine) error) (ScanTotals, error) {
		return ScanTotals{}, refusef(http.StatusNotFound, "name one", "no layer %q", req.Name)
	}
	path := serve(t, b)
	n := 0
	for _, err := range NewClient(path).Scan(t.Context(), ScanRequest{Kind: ScanLayer, Name: "sha256:00"}) {
		n++
		refusedWith(t, err, `no layer "sha256:00"`)
	}
	if n != 1 {
		t.Errorf("%d elements, want only the error", n)
	}
	for body, want := range map[string]string{
		"": "EOF", `{"kind":"file","name":"x"}`: `kind "file"`, `{"kind":"layer"}`: "names nothing", `{"kind":"layer","name":"a\u0000"}`: "names nothing",
		`{"kind":"layer","name":"x","path":"y"}`: "unknown field", `{"kind":"layer","name":"x"}7`: "follows", "{\"kind\":\"\xff\"}": "UTF-8",
	} {
		refusePost(t, path, PathScan, body, want)
	}
}

func TestScanThatFailsUnderWay(t *testing.T) {
	b := newBackend(t)
	b.scan = func(_ context.Context, _ ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
		return ScanTotals{Files: 1}, errors.Join(emit(progress(1)), &announce.Refusal{Message: "the layer is gone", Remedy: "pull it"})
	}
	var last ScanLine
	for line, err := range NewClient(serve(t, b)).Scan(t.Context(), ScanRequest{Kind: ScanLayer, Name: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		last = line
	}
	if last.Failed == nil || *last.Failed != (announce.Refusal{Message: "the layer is gone", Remedy: "pull it"}) || last.Done != nil {
		t.Errorf("the last line is %+v", last)
	}
}

// A client that goes away ends the scan, and what is emitted then is an error.
func TestLeavingEndsTheScan(t *testing.T) {
	for _, how := range []string{"loop", "context"} {
		t.Run(how, func(t *testing.T) {
			b := newBackend(t)
			left := make(chan error, 1)
			b.scan = func(ctx context.Context, _ ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
				if err := emit(progress(1)); err != nil {
					t.Error(err)
				}
				<-ctx.Done()
				var err error
				for err == nil { // until the socket says so
					err = emit(progress(2))
				}
				left <- err
				return ScanTotals{}, ctx.Err()
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var last error
			for _, err := range NewClient(serve(t, b)).Scan(ctx, ScanRequest{Kind: ScanLayer, Name: "x"}) {
				if last = err; how == "loop" {
					break
				}
				cancel()
			}
			if err := <-left; !errors.Is(err, errStreamOver) {
				t.Errorf("emit ended with %v", err)
			}
			if how == "context" && !errors.Is(last, context.Canceled) {
				t.Errorf("the client's last error is %v", last)
			}
		})
	}
}

func TestStoppingEndsTheScan(t *testing.T) {
	b := newBackend(t)
	b.scan = func(ctx context.Context, _ ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
		if err := emit(progress(1)); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		return ScanTotals{}, ctx.Err()
	}
	s := newServer(t, b)
	path := socketPath(t)
	serveAt(t, path, s)
	var last ScanLine
	for line, err := range NewClient(path).Scan(t.Context(), ScanRequest{Kind: ScanLayer, Name: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		if last = line; line.Progress != nil {
			go s.Shutdown(context.Background()) //nolint:errcheck // the test's end reports it
		}
	}
	if last.Failed == nil || last.Failed.Message != "the agent stops" || last.Failed.Remedy == "" {
		t.Errorf("the last line is %+v", last)
	}
}

// A client that does not read holds the scan up, and not the agent's end.
func TestScanForAClientThatDoesNotRead(t *testing.T) {
	b := newBackend(t)
	stuck := make(chan struct{})
	b.scan = func(ctx context.Context, _ ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
		close(stuck)
		return ScanTotals{}, emit(ScanLine{Error: &ScanError{Error: strings.Repeat("x", 4<<20)}}) // more than a socket holds
	}
	s := newServer(t, b)
	path := socketPath(t)
	serveAt(t, path, s)
	c := dial(t, path)
	body := `{"kind":"layer","name":"x"}`
	sendRaw(t, c, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", PathScan, len(body), body))
	<-stuck
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown() = %v", err)
	}
}

func TestScanFromManyGoroutines(t *testing.T) {
	b := newBackend(t)
	var keep func(ScanLine) error
	b.scan = func(_ context.Context, _ ScanRequest, emit func(ScanLine) error) (ScanTotals, error) {
		keep = emit
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 50 {
					if err := emit(progress(int64(i))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		return ScanTotals{}, nil
	}
	n := 0
	for _, err := range NewClient(serve(t, b)).Scan(t.Context(), ScanRequest{Kind: ScanLayer, Name: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 401 {
		t.Errorf("%d lines, want 401", n)
	}
	if err := keep(progress(1)); !errors.Is(err, errStreamOver) {
		t.Errorf("emit after the end = %v", err)
	}
}

func TestScanOfABrokenStream(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	for name, tt := range map[string]struct {
		reply       string
		unreachable bool
	}{
		"no end":      {ok + `{"progress":{}}` + "\n", true},
		"half a line": {ok + `{"done":`, true},
		"not JSON":    {ok + "hello\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			var last error
			for _, err := range NewClient(answer(t, tt.reply)).Scan(t.Context(), ScanRequest{}) {
				last = err
			}
			if last == nil || errors.Is(last, ErrUnreachable) != tt.unreachable {
				t.Errorf("error %v, want unreachable %v", last, tt.unreachable)
			}
		})
	}
}

func FuzzDecodeScan(f *testing.F) {
	for _, seed := range []string{`{"kind":"layer","name":"sha256:aa"}`, `{"kind":"image","name":"a","tenant":"b"}`, "", "null", `{"kind":"layer"}`, `{}{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := decodeScan(body)
		if err != nil {
			return
		}
		encoded, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeScan(encoded); err != nil || again != req {
			t.Fatalf("%+v became %+v, %v", req, again, err)
		}
	})
}
