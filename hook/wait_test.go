package hook

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// scripted listens at path, answers one announcement after the other and the last
// reply for ever, and counts them. "" is to hang up.
func scripted(t *testing.T, path string, replies ...string) *atomic.Int64 {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	asked, done := new(atomic.Int64), make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := int(asked.Add(1))
			if err := readRequest(c); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(c, replies[min(n, len(replies))-1])
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return asked
}

// An agent that is being replaced is waited for.
func TestSendWaits(t *testing.T) {
	good, bye := response("200 OK", guarded), response("503 Service Unavailable", stopping)
	for name, replies := range map[string][]string{
		"hung up":      {"", "", good},
		"stopping":     {bye, bye, good},
		"both":         {bye, "", good},
		"then refused": {bye, "", response("409 Conflict", `{"error":"no overlay"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			asked := scripted(t, socket, replies...)
			err := send(container(), &Options{Socket: socket, Timeout: generous, Wait: generous})
			refused := err != nil && err.Error() == "no overlay"
			if (err != nil) != (name == "then refused") || (err != nil && !refused) || asked.Load() != 3 {
				t.Errorf("asked %d times, error %v", asked.Load(), err)
			}
		})
	}
}

// One that is not there yet is, too, whatever stands in its place meanwhile.
func TestSendWaitsForASocket(t *testing.T) {
	for name, old := range map[string]func(t *testing.T, path string){
		"no file":   func(*testing.T, string) {},
		"no socket": func(t *testing.T, path string) { t.Helper(); must(t, os.WriteFile(path, nil, 0o600)) },
		"stale": func(t *testing.T, path string) {
			t.Helper()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			l.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			old(t, socket)
			sent := make(chan error, 1)
			go func() { sent <- send(container(), &Options{Socket: socket, Timeout: generous, Wait: generous}) }()
			select {
			case err := <-sent:
				t.Fatalf("the hook did not wait: %v", err)
			case <-time.After(3 * askEvery):
			}
			next := socket + ".new" // so that there is no moment between the two
			scripted(t, next, response("200 OK", guarded))
			must(t, os.Rename(next, socket))
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// Whatever an agent that is there does is final.
func TestSendAsksOnce(t *testing.T) {
	for name, reply := range map[string]string{
		"refusal":             response("409 Conflict", `{"error":"no overlay"}`),
		"lack of something":   response("503 Service Unavailable", `{"error":"no fanotify group for container c1"}`),
		"stopping, not a 503": response("409 Conflict", stopping),
		"half a reply":        "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{",
		"another container":   response("200 OK", `{"id":"c2"}`),
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			asked := scripted(t, socket, reply, response("200 OK", guarded))
			err := send(container(), &Options{Socket: socket, Timeout: generous, Wait: generous})
			if err == nil || errors.Is(err, ErrAgentMissing) || asked.Load() != 1 {
				t.Errorf("asked %d times, error %v", asked.Load(), err)
			}
		})
	}
}

// The wait has an end, and the time for everything bounds it.
func TestSendWaitEnds(t *testing.T) {
	const short = 3 * askEvery
	bye := response("503 Service Unavailable", stopping)
	for name, tt := range map[string]struct {
		timeout, wait time.Duration
		reply         string // "none" is no agent
		is, not       error
		asked         int64 // at least
	}{
		"wait":           {generous, short, "none", ErrAgentMissing, ErrTimeout, 0},
		"timeout":        {short, generous, "none", ErrAgentMissing, ErrTimeout, 0},
		"hanging up":     {generous, short, "", ErrReply, ErrAgentMissing, 2},
		"stopping":       {generous, short, bye, ErrAgentMissing, ErrTimeout, 2},
		"no wait at all": {generous, 0, "", ErrReply, ErrAgentMissing, 1},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			asked := new(atomic.Int64)
			if tt.reply != "none" {
				asked = scripted(t, socket, tt.reply)
			}
			err := send(container(), &Options{Socket: socket, Timeout: tt.timeout, Wait: tt.wait})
			if !errors.Is(err, tt.is) || errors.Is(err, tt.not) || asked.Load() < tt.asked {
				t.Errorf("asked %d times, error %v, want %v and not %v", asked.Load(), err, tt.is, tt.not)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
