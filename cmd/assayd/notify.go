package main

import (
	"net"
	"os"
	"time"
)

// notifyPatience bounds how long the agent waits for room in systemd's socket. A
// systemd that does not read must not keep the agent from signals.
const notifyPatience = time.Second

// notify tells systemd, if it listens.
func (a *agent) notify(state string) {
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		if err := notify(socket, state); err != nil {
			a.log.Warn("systemd could not be notified", "state", state, "error", err)
		}
	}
}

// notify is daemon.SdNotify of go-systemd, which waits without a bound.
func notify(socket, state string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyPatience)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}
