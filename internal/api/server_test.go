package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
)

const goodAnnouncement = `{"id":"c1","pid":42,"rootfs":"/"}`

// wantRefusal checks a reply that is not a 200.
func wantRefusal(t *testing.T, resp *http.Response, body string, status int, want string) {
	t.Helper()
	var r announce.Refusal
	err := json.Unmarshal([]byte(body), &r)
	if err != nil || resp.StatusCode != status || !strings.Contains(r.Error(), want) ||
		resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("reply %s, %v, %s (%v); want status %d and JSON with %q", resp.Status, resp.Header, body, err, status, want)
	}
}

// A teapotError chooses its status.
type teapotError struct{}

func (teapotError) Error() string   { return "short and stout" }
func (teapotError) HTTPStatus() int { return http.StatusTeapot }

func TestRefusals(t *testing.T) {
	b := newBackend(t)
	results := map[string]error{
		"conflict": fmt.Errorf("guard: %w", &announce.Refusal{Message: "already guarded", Remedy: "release it"}),
		"teapot":   fmt.Errorf("guard: %w", teapotError{}),
		"broken":   errors.New("broken"),
	}
	b.announce = func(_ context.Context, c announce.Container) (announce.Guarded, error) {
		return announce.Guarded{}, results[c.ID]
	}
	path := serve(t, b)
	post := func(body string) string {
		return fmt.Sprintf("POST /v1/containers HTTP/1.1\r\nHost: assay\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: assay\r\n\r\n" }
	named := func(id string) string { return post(strings.Replace(goodAnnouncement, "c1", id, 1)) }
	tests := []struct {
		name, request string
		status        int
		want          string
	}{
		{"no such path", get("/v1/nothing"), 404, "/v1/nothing"},
		{"no such path, slash", get("/v1/status/"), 404, "docs/api.md"},
		{"wrong method", strings.Replace(get("/v1/status"), "GET", "DELETE", 1), 405, "use GET"},
		{"asterisk", strings.Replace(get("*"), "GET", "OPTIONS", 1), 404, "no"},
		{"no body", post(""), 400, "EOF"},
		{"not JSON", post("pid=42"), 400, "invalid character"},
		{"half of it", post(`{"id":"c1",`), 400, "unexpected EOF"},
		{"null", post("null"), 400, "not usable"},
		{"unknown key", post(`{"id":"c1","pid":42,"rootfs":"/","tenant":"x"}`), 400, "tenant"},
		{"two objects", post(goodAnnouncement + goodAnnouncement), 400, "follows"},
		{"not UTF-8", post("{\"id\":\"c\xff\",\"pid\":42,\"rootfs\":\"/\"}"), 400, "UTF-8"},
		{"not valid", post(`{"id":"c1","pid":1,"rootfs":"/"}`), 400, "pid 1"},
		{"too long", post(strings.Repeat(" ", announce.MaxBytes+1)), 413, "1048576"},
		{"refused", named("conflict"), 409, "already guarded (release it)"},
		{"refused with a status", named("teapot"), 418, "short and stout"},
		{"failed", named("broken"), 500, "broken (see the agent's log"},
		{"unknown parameter", get("/v1/events?tennant=x"), 400, "tennant"},
		{"parameter given twice", get("/v1/events?tenant=x&tenant=y"), 400, "tenant"},
		{"bad since", get("/v1/events?since=-1"), 400, "since"},
		{"bad follow", get("/v1/events?follow=maybe"), 400, "follow"},
		{"bad decision", get("/v1/events?decision=maybe"), 400, "allow or deny"},
		{"bad op", get("/v1/events?op=close"), 400, "open, exec, dirty, scan, absence, start, late"},
		{"bad query", get("/v1/events?%zz"), 400, "parameters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, path)
			// The server may answer, and stop reading, before it has it all.
			go func() { _, _ = io.WriteString(c, tt.request) }()
			resp, body := receive(t, c)
			wantRefusal(t, resp, body, tt.status, tt.want)
			if tt.status == 405 && resp.Header.Get("Allow") != http.MethodGet {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
		})
	}
}

func TestRawExchange(t *testing.T) {
	b := newBackend(t)
	b.status = Status{Version: "1 <dev>", Healthy: true, Tenants: []TenantStatus{{Name: "a"}}, Containers: []ContainerStatus{{ID: "c"}}}
	c := dial(t, serve(t, b))
	for range 2 { // the connection may be used again
		sendRaw(t, c, "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n")
		resp, body := receive(t, c)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || !strings.HasSuffix(body, "}\n") {
			t.Fatalf("reply %s, %v, %q", resp.Status, resp.Header, body)
		}
		for _, want := range []string{`"version":"1 <dev>"`, `"problems":[]`, `"scanners":[]`, `"marks":[]`, `"reasons":{}`, `"pending":0`} {
			if !strings.Contains(body, want) {
				t.Errorf("no %s in %s", want, body)
			}
		}
	}
}

func TestAnnounceReachesTheBackend(t *testing.T) {
	b := newBackend(t)
	var got announce.Container
	b.announce = func(_ context.Context, c announce.Container) (announce.Guarded, error) {
		got = c
		return announce.Guarded{ID: c.ID, Tenant: "default", Marks: 3}, nil
	}
	want := announce.Container{ID: "c1", PID: 42, Rootfs: "/var/x", Namespace: "ns", Labels: map[string]string{"a": "b"}}
	g, err := NewClient(serve(t, b)).Announce(t.Context(), want)
	if err != nil || g != (announce.Guarded{ID: "c1", Tenant: "default", Marks: 3}) {
		t.Errorf("Announce() = %+v, %v", g, err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the backend got %+v, want %+v", got, want)
	}
}

func TestHangingUpEndsTheCall(t *testing.T) {
	b := newBackend(t)
	entered, left := make(chan struct{}), make(chan error)
	b.announce = func(ctx context.Context, _ announce.Container) (announce.Guarded, error) {
		close(entered)
		<-ctx.Done()
		left <- ctx.Err()
		return announce.Guarded{}, ctx.Err()
	}
	client := NewClient(serve(t, b))
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := client.Announce(ctx, announce.Container{ID: "c1", PID: 42, Rootfs: "/"})
		result <- err
	}()
	<-entered
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the call's context ended with %v", err)
	}
	if err := <-result; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("Announce() = %v, want the context's error", err)
	}
}

func TestSlowHeaderIsHungUpOn(t *testing.T) {
	s := newServer(t, newBackend(t))
	if s.http.ReadHeaderTimeout == 0 || s.http.WriteTimeout != 0 {
		t.Errorf("timeouts: header %v, write %v", s.http.ReadHeaderTimeout, s.http.WriteTimeout)
	}
	s.http.ReadHeaderTimeout = 1
	path := socketPath(t)
	serveAt(t, path, s)
	c := dial(t, path)
	_, _ = io.WriteString(c, "GET /v1/sta") // fails if the server was faster
	_, _ = io.Copy(io.Discard, c)           // waits until the server hangs up
}

func TestSlowBodyIsRefused(t *testing.T) {
	s := newServer(t, newBackend(t))
	s.bodyTime = 1
	path := socketPath(t)
	serveAt(t, path, s)
	c := dial(t, path)
	sendRaw(t, c, "POST /v1/containers HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n{")
	resp, body := receive(t, c)
	wantRefusal(t, resp, body, 400, "broke off")
}

func TestACallMayTakeLongerThanItsBody(t *testing.T) {
	b := newBackend(t)
	slow := func(ctx context.Context) error {
		select {
		case <-ctx.Done(): // at once if the body's deadline were left in place
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
			return nil
		}
	}
	b.announce = func(ctx context.Context, _ announce.Container) (announce.Guarded, error) {
		return announce.Guarded{}, slow(ctx)
	}
	b.check = func(ctx context.Context, _ int, _, _ string) (CheckResult, error) {
		return CheckResult{}, slow(ctx)
	}
	s := newServer(t, b)
	s.bodyTime = 10 * time.Millisecond
	path := socketPath(t)
	serveAt(t, path, s)
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewClient(path).Check(t.Context(), f, ""); err != nil {
		t.Errorf("Check() = %v", err)
	}
	c := dial(t, path)
	sendRaw(t, c, "POST /v1/containers HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n"+goodAnnouncement)
	if resp, body := receive(t, c); resp.StatusCode != 200 {
		t.Errorf("reply %s, %s", resp.Status, body)
	}
}

func TestShutdownGivesUpOnAStuckCall(t *testing.T) {
	b := newBackend(t)
	entered := make(chan struct{})
	b.announce = func(ctx context.Context, _ announce.Container) (announce.Guarded, error) {
		close(entered)
		<-ctx.Done() // comes when the server hangs up
		return announce.Guarded{}, ctx.Err()
	}
	s := newServer(t, b)
	path := socketPath(t)
	serveAt(t, path, s)
	result := make(chan error)
	go func() {
		_, err := NewClient(path).Announce(context.Background(), announce.Container{ID: "c1", PID: 42, Rootfs: "/"})
		result <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown() = %v, want its context's error", err)
	}
	if err := <-result; !errors.Is(err, ErrUnreachable) {
		t.Errorf("Announce() = %v, want ErrUnreachable", err)
	}
}

func TestRecordsStatusIsWhatAuditSays(t *testing.T) {
	got := RecordsStatus(audit.Status{Written: 1, Pending: 2, Lost: 3, Error: "e", File: "f", Subscribers: 4, LostToSubs: 5, LostAtCrash: 6})
	if got != (RecordsStatus{Written: 1, Pending: 2, Lost: 3, Error: "e", File: "f", Subscribers: 4, LostToSubs: 5, LostAtCrash: 6}) {
		t.Errorf("converted to %+v", got)
	}
}

func FuzzDecodeAnnouncement(f *testing.F) {
	for _, seed := range []string{
		goodAnnouncement, `{"id":"c1","pid":42,"rootfs":"/r","labels":{"a":"b"},"namespace":"n","bundle":"/b","source":"hook:prestart"}`,
		"", "null", "[]", `{"id":"c1"}{}`, `{"pid":1e9}`, `{"ID":"c1","PID":2,"ROOTFS":"/"}`, "{\"id\":\"\xff\"}", `{"id":"\u0000","pid":2,"rootfs":"/"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := decodeAnnouncement(body)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("%q was taken although %v", body, err)
		}
		encoded, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeAnnouncement(encoded)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(c) {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
