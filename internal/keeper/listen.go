package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/lockfile"
)

// ErrRunning says that another keeper has the socket.
var ErrRunning = errors.New("another keeper is at work")

// Listen makes the keeper's socket, with its directory, for root alone. A lock beside
// it tells a keeper at work from a socket that one has left behind. The lock is given
// up with the process.
func Listen(socket string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	// Its descriptor stays open for as long as the process lives.
	_, err := lockfile.Take(socket+".lock", lockPatience)
	switch {
	case errors.Is(err, lockfile.ErrHeld):
		return nil, fmt.Errorf("%w: %s.lock is locked", ErrRunning, socket)
	case err != nil:
		return nil, fmt.Errorf("lock %s.lock: %w", socket, err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket that another keeper has left: %w", err)
	}
	// For root alone from its first moment.
	before := unix.Umask(0o177)
	defer unix.Umask(before)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln, nil
}

// lockPatience is how long the last keeper may take to end.
const lockPatience = time.Second
