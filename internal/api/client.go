package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
)

// Why a [Client] got no answer.
var (
	// ErrUnreachable means that nobody answers on the socket.
	ErrUnreachable = errors.New("the agent cannot be reached")
	// ErrForeignSocket means that somebody other than root, or the caller
	// himself, listens on the socket. Nothing was sent.
	ErrForeignSocket = errors.New("the socket is not the agent's")
)

// A Client speaks to the agent. It is safe for any number of goroutines and
// keeps no connection between two calls. Its errors are [ErrUnreachable] and
// [ErrForeignSocket], both with a remedy in their text, a *announce.Refusal
// from the agent, or the context's.
type Client struct {
	socket string
}

// NewClient returns a client of the agent on a socket; "" is [DefaultSocket].
// It does not connect yet.
func NewClient(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	return &Client{socket: socket}
}

// Status asks the agent how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, PathStatus, nil, nil)
}

// Announce has a container guarded and returns when it is.
func (c *Client) Announce(ctx context.Context, a announce.Container) (announce.Guarded, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return announce.Guarded{}, fmt.Errorf("encode the announcement: %w", err)
	}
	return call[announce.Guarded](ctx, c, http.MethodPost, announce.Path, bytes.NewReader(body), nil)
}

// Check has a regular file that is open for reading scanned by the pools of a
// tenant, "" being the default one. The agent gets the descriptor itself, so
// the verdict is on f whatever its name may lead to by now.
func (c *Client) Check(ctx context.Context, f *os.File, tenant string) (CheckResult, error) {
	q := url.Values{"path": {f.Name()}}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	return call[CheckResult](ctx, c, http.MethodPost, PathCheck+"?"+q.Encode(), nil, f)
}

// call makes one call and decodes its reply.
func call[T any](ctx context.Context, c *Client, method, path string, body io.Reader, pass *os.File) (T, error) {
	var v T
	resp, err := c.do(ctx, method, path, body, pass)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(resp.Body)
	if err != nil {
		return v, c.broken(ctx, err)
	}
	if err := json.Unmarshal(reply, &v); err != nil {
		return v, &gibberishError{err}
	}
	return v, nil
}

// do sends a request, with a descriptor if pass is not nil. The caller closes
// the reply's body.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, pass *os.File) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://assay"+path, body)
	if err != nil {
		return nil, fmt.Errorf("request to the agent: %w", err)
	}
	transport := &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			u, err := c.dial(ctx)
			if err != nil || pass == nil {
				return u, err
			}
			return &passingConn{UnixConn: u, file: pass}, nil
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, decodeRefusal(resp)
	}
	return resp, nil
}

// dial connects and makes sure of who listens.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, err
	}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("dialled a %T", nc), nc.Close())
	}
	cred, err := peer(u)
	if err == nil && !trusted(cred.Uid) {
		err = fmt.Errorf("%w: pid %d of uid %d listens on %s (find out what it is; the agent runs as root)",
			ErrForeignSocket, cred.Pid, cred.Uid, c.socket)
	}
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}

// broken says why there was no reply.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*gibberishError](err); ok || errors.Is(err, ErrForeignSocket) {
		return err
	}
	return fmt.Errorf("%w on %s: %w (%s)", ErrUnreachable, c.socket, err, remedy(err))
}

// remedy tells a person what to do about an agent that does not answer.
func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is assayd running? See systemctl status assayd, or name its socket with --socket"
	case errors.Is(err, fs.ErrPermission):
		return "only root may use the socket: run it as root"
	case errors.Is(err, unix.ECONNREFUSED):
		return "assayd left the socket behind and is gone: systemctl start assayd"
	default:
		return "see systemctl status assayd and journalctl -u assayd"
	}
}

// A gibberishError is a reply that this client does not understand.
type gibberishError struct{ err error }

func (e *gibberishError) Error() string {
	return fmt.Sprintf("the agent's reply makes no sense: %v (are assayd and this program of the same version?)", e.err)
}

func (e *gibberishError) Unwrap() error { return e.err }

// decodeRefusal returns the agent's refusal, or one that says what came instead.
func decodeRefusal(resp *http.Response) error {
	r := new(announce.Refusal)
	err := json.NewDecoder(io.LimitReader(resp.Body, announce.MaxBytes)).Decode(r)
	if err != nil || r.Message == "" {
		r.Message = "the agent answered " + resp.Status
	}
	return r
}

// A passingConn sends a descriptor with its first bytes.
type passingConn struct {
	*net.UnixConn
	file *os.File
	once sync.Once
}

func (c *passingConn) Write(p []byte) (n int, err error) {
	c.once.Do(func() { n, err = c.pass(p) })
	if err != nil || n == len(p) {
		return n, err
	}
	rest, err := c.UnixConn.Write(p[n:])
	return n + rest, err
}

// pass sends the descriptor with as much of p as the socket takes at once.
func (c *passingConn) pass(p []byte) (n int, err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		n, _, err = c.WriteMsgUnix(p, unix.UnixRights(int(fd)), nil)
	})
	return n, errors.Join(ctlErr, err)
}
