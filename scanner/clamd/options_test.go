package clamd

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
	"time"
)

func TestNewRefusesUnusableOptions(t *testing.T) {
	const good = "unix:/run/clamav/clamd.ctl"
	for _, o := range []Options{
		{},
		{Address: "/run/clamav/clamd.ctl"},
		{Address: "unix:"},
		{Address: "unix:run/clamd.ctl"},
		{Address: "unix:/run/\x00"},
		{Address: "unix:/" + strings.Repeat("x", maxSocketPath)},
		{Address: "tcp:"},
		{Address: "tcp:localhost"},
		{Address: "tcp::3310"},
		{Address: "tcp:localhost:"},
		{Address: "tcp:localhost:0"},
		{Address: "tcp:localhost:65536"},
		{Address: "tcp:localhost:clamd"},
		{Address: "udp:localhost:3310"},
		{Address: good, Connections: -1},
		{Address: good, DialTimeout: -1},
		{Address: good, RefreshInterval: -1},
		{Address: good, IdleTimeout: -1},
		{Address: good, BackoffMin: -1},
		{Address: good, BackoffMax: -1},
		{Address: good, BackoffMin: time.Second, BackoffMax: time.Millisecond},
	} {
		if s, err := New(o); err == nil {
			t.Errorf("%+v: accepted", o)
			s.Close()
		}
	}
}

func TestNewNeedsNoClamd(t *testing.T) {
	for _, address := range []string{
		"unix:/nonexistent/clamd.ctl", "tcp:127.0.0.1:1", "tcp:[::1]:1", "unix:/" + strings.Repeat("x", maxSocketPath-1),
	} {
		s, err := New(Options{Address: address})
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if gen := s.Generation(); gen != "" {
			t.Errorf("%s: generation %q", address, gen)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDefaults(t *testing.T) {
	o := Options{BackoffMin: time.Minute}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.Connections != 4 || o.MaxFileSize != DefaultMaxFileSize || o.BackoffMax != time.Minute ||
		o.DialTimeout <= 0 || o.RefreshInterval <= 0 || o.IdleTimeout <= 0 {
		t.Errorf("defaults: %+v", o)
	}
}

func TestDelay(t *testing.T) {
	const least, greatest = 100 * time.Millisecond, 5 * time.Second
	for _, c := range []struct {
		failures int
		chance   float64
		want     time.Duration
	}{
		{1, 0, least},
		{1, 1, least / 2},
		{2, 0, 2 * least},
		{3, 0.5, 300 * time.Millisecond},
		{6, 0, 3200 * time.Millisecond},
		{7, 0, greatest},
		{1 << 40, 0, greatest},
		{1 << 40, 1, greatest / 2},
	} {
		if got := delay(c.failures, least, greatest, c.chance); got != c.want {
			t.Errorf("delay after %d failures, chance %v: %v, want %v", c.failures, c.chance, got, c.want)
		}
	}
}

func TestNested(t *testing.T) {
	content := nested()
	for depth := range nesting {
		r, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
		if content, err = io.ReadAll(r); err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
	}
	if !bytes.HasPrefix(content, []byte("nested deeper")) {
		t.Errorf("innermost is %q", content)
	}
}
