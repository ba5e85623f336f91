package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestNotifyUnread: a systemd that does not read its socket does not keep the agent for
// ever, and hears what came first when it reads again.
func TestNotifyUnread(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for err = nil; err == nil; { // until the queue is full
		err = notify(socket, "READY=1")
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a full queue: %v", err)
	}
	buf := make([]byte, 64)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}
