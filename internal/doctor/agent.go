package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/api"
)

// An agentReport is what the running agent says and what the kernel says of it.
type agentReport struct {
	pid        int // in this process's pid namespace; 0 if it is not visible here
	containers int
	version    string // "" if it gave no status
}

// askAgent finds out who serves the socket and asks for its status. The report
// is nil where no agent of root's answered. hooked says that a hook is
// installed, which makes a missing agent matter.
func askAgent(ctx context.Context, o *Options, hooked bool) (*agentReport, Check) {
	check := Check{Area: AreaAgent, Name: o.Socket}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	peer, err := socketPeer(ctx, o.Socket)
	if err != nil {
		describeUnreachable(&check, err, hooked)
		return nil, check
	}
	if peer.Uid != 0 {
		check.Status = Fail
		check.Detail = fmt.Sprintf("is served by uid %d, not by root: whoever it is could approve any file", peer.Uid)
		check.Remedy = "find out who that is (ss -xlp), stop it, and start the agent as root"
		return nil, check
	}
	report := &agentReport{pid: int(peer.Pid)}
	status, err := agentStatus(ctx, o.Socket)
	if err != nil {
		check.Status, check.Detail = Fail, fmt.Sprintf("is served by root (pid %d), but gives no status: %v", peer.Pid, err)
		check.Remedy = "check that agent and doctor are of the same version (assay version), and the agent's log"
		return report, check
	}
	report.containers, report.version = len(status.Containers), status.Version
	check.Status = OK
	check.Detail = fmt.Sprintf("answers: version %s, pid %d, containers %d", status.Version, peer.Pid, report.containers)
	if !status.Healthy {
		check.Status = Fail
		check.Detail = "the agent calls itself unhealthy: " + strings.Join(status.Problems, "; ")
		check.Remedy = "do what the problems say; \"assay status\" shows more"
	}
	return report, check
}

// describeUnreachable explains why nobody answers at the socket.
func describeUnreachable(check *Check, err error, hooked bool) {
	const start = "start the agent (systemctl start assayd), or name its socket with --socket"
	switch {
	case errors.Is(err, fs.ErrPermission):
		check.Status, check.Detail, check.Remedy = Unknown, "only root may use it", runAsRoot
	case hooked:
		check.Status, check.Remedy = Warn, start
		check.Detail = fmt.Sprintf("no agent answers, although a hook is installed that asks it about every container: %v", err)
	default:
		check.Status, check.Remedy = Unknown, start
		check.Detail = fmt.Sprintf("no agent answers, so it could not be asked: %v", err)
	}
}

// socketPeer connects to the socket and asks the kernel who is at the other end.
func socketPeer(ctx context.Context, path string) (*unix.Ucred, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s: not a unix socket", path)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return peer, errors.Join(err, failed)
}

// agentStatus asks the agent for its status.
func agentStatus(ctx context.Context, socket string) (api.Status, error) {
	return api.NewClient(socket).Status(ctx)
}
