package api

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// trusted reports whether a uid may stand at the other end of the socket: root,
// and the user this process runs as.
func trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// peer returns who connected to a socket, or who listens on it if this end
// connected (SO_PEERCRED in unix(7)). The kernel vouches for it.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer of the socket: %w", err)
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) {
		err = retryEINTR(func() error {
			cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			return err
		})
	})
	if err := errors.Join(ctlErr, err); err != nil {
		return nil, fmt.Errorf("peer of the socket: %w", err)
	}
	return cred, nil
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
