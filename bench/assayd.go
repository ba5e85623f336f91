package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/api"
)

// marksPatience is how long the agent may take to put its kernel marks.
const marksPatience = 5 * time.Second

// An assayd is the built agent, with directories of its own.
type assayd struct {
	socket string
	config string
	start  func() error
	stop   func()
}

// A guardConfig is what differs between the agents that are measured.
type guardConfig struct {
	scanner     string // one entry of scanners, without its name
	kernelMarks string
	alone       bool // without a keeper
}

// clamdScanner is a scanner that passes descriptors to clamd.
func (b *bench) clamdScanner() string {
	return fmt.Sprintf("clamd: {address: \"unix:%s\", connections: %d}", b.clamd.socket, max(4, b.streams))
}

// hashScanner is a scanner that has to read every file: its list has a digest
// without a size.
func (b *bench) hashScanner() (string, error) {
	list := filepath.Join(b.scratch, "hashes")
	if err := os.WriteFile(list, []byte(strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		return "", err
	}
	return fmt.Sprintf("hashlist: {files: [%s]}", list), nil
}

// probeConfiguration finds out which settings the agent knows that keep it from
// doing more than it is measured for.
func (b *bench) probeConfiguration() error {
	const ahead = "scanAhead: off"
	file := filepath.Join(b.scratch, "probe.yaml")
	if err := os.WriteFile(file, []byte("tenants:\n  - name: probe\n    "+ahead+"\n"), 0o600); err != nil {
		return err
	}
	if exec.Command(filepath.Join(b.bin, "assayd"), "--config", file, "--check").Run() == nil {
		b.extra = append(b.extra, ahead)
	}
	return nil
}

// newAssayd writes the configuration of an agent and starts it.
func (b *bench) newAssayd(g guardConfig) (*assayd, error) {
	dir, err := os.MkdirTemp(b.scratch, "agent-")
	if err != nil {
		return nil, err
	}
	a := &assayd{socket: filepath.Join(dir, "agent.sock"), config: filepath.Join(dir, "assay.yaml")}
	lines := []string{
		"socket: " + a.socket, "state: " + filepath.Join(dir, "state"),
		"scanners:", "  - name: bench", "    " + g.scanner,
		"tenants:", "  - name: bench", "    kernelMarks: " + g.kernelMarks, "    deadline: 60s",
	}
	for _, line := range b.extra {
		lines = append(lines, "    "+line)
	}
	if g.alone {
		lines = append(lines, "keeper: {backend: off}")
	}
	if err := os.WriteFile(a.config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	a.start = func() error {
		stop, err := startAgent(b.bin, a.config, a.socket)
		a.stop = stop
		return err
	}
	return a, a.start()
}

// startAgent starts assayd and returns when it listens.
func startAgent(bin, config, socket string) (stop func(), err error) {
	c := exec.Command(filepath.Join(bin, "assayd"), "--config", config, "--log-level", "error")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("%w (make build)", err)
	}
	stop = func() {
		_ = c.Process.Signal(unix.SIGTERM)
		_ = c.Wait()
	}
	if err := until(10*time.Second, func() error {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}); err != nil {
		stop()
		return nil, fmt.Errorf("the agent does not listen: %w", err)
	}
	return stop, nil
}

// until asks again and again until there is no error, or patience ends.
func until(patience time.Duration, ok func() error) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(patience); ; {
		err := ok()
		if err == nil || time.Now().After(end) {
			return err
		}
		<-look.C
	}
}

// guard announces containers.
func (a *assayd) guard(containers ...*container) error {
	for _, c := range containers {
		if err := a.announce(c.id, c.pid, c.root); err != nil {
			return err
		}
	}
	return nil
}

func (a *assayd) announce(id string, pid int, root string) error {
	_, err := api.NewClient(a.socket).Announce(context.Background(), announce.Container{ID: id, PID: pid, Rootfs: root})
	return err
}

// A status is the part of the agent's account of itself that is reported. What an
// agent does not tell is nil.
type status struct {
	Tenants []struct {
		Name      string  `json:"name"`
		Denied    uint64  `json:"denied"`
		Unscanned uint64  `json:"unscanned"`
		Scans     *uint64 `json:"scans"` // that scanners really made
	} `json:"tenants"`
	Marks *struct {
		Now     int               `json:"now"`
		Skipped map[string]uint64 `json:"skipped"`
	} `json:"marks"`
}

func (a *assayd) status() (status, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", a.socket)
	}}
	var s status
	request, err := http.NewRequest(http.MethodGet, "http://assay"+api.PathStatus, http.NoBody)
	if err != nil {
		return s, err
	}
	resp, err := transport.RoundTrip(request)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// scans returns how many scans scanners made, and whether the agent tells.
func (a *assayd) scans() (n uint64, told bool, err error) {
	s, err := a.status()
	for _, t := range s.Tenants {
		if t.Scans != nil {
			n, told = n+*t.Scans, true
		}
	}
	return n, told, err
}

// sound fails if something was denied, or let through unscanned: then the
// measurement is worth nothing.
func (a *assayd) sound() error {
	s, err := a.status()
	for _, t := range s.Tenants {
		if t.Denied+t.Unscanned > 0 {
			return fmt.Errorf("tenant %s: %d denied, %d let through unscanned", t.Name, t.Denied, t.Unscanned)
		}
	}
	return err
}

// awaitMarks waits until the kernel marks stand, or their number does not grow any
// more, and returns it, -1 if the agent does not tell; and why files got none.
func (a *assayd) awaitMarks(want int) (now int, skipped string, err error) {
	const calm = 500 * time.Millisecond
	now = -1
	since := time.Now()
	_ = until(marksPatience, func() error {
		var s status
		if s, err = a.status(); err != nil || s.Marks == nil {
			return nil //nolint:nilerr // the end of waiting; awaitMarks returns it
		}
		if s.Marks.Now != now {
			now, since = s.Marks.Now, time.Now()
		}
		skipped = ""
		for _, why := range slices.Sorted(maps.Keys(s.Marks.Skipped)) {
			skipped += fmt.Sprintf(", %s %d", why, s.Marks.Skipped[why])
		}
		if now >= want || time.Since(since) > calm {
			return nil
		}
		return errors.New("the marks still grow")
	})
	return now, skipped, err
}
