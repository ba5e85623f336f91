package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

// nri serves the runtime's connection that came with the request.
func (s *Server) nri(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	if _, err := s.readBody(w, r, 0); err != nil {
		return err
	}
	conn, err := passedConn(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)() //nolint:contextcheck // the server's lifetime bounds it, besides the request's
	if err := s.backend.ServeNRI(ctx, conn); err != nil && s.streams.Err() == nil {
		return err
	}
	return reply(w, struct{}{})
}

// passedConn returns the connection whose descriptor came with the request.
func passedConn(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	c, ok := connOf(r.Context())
	if !ok {
		return nil, errors.New("the request did not come through the agent's socket")
	}
	w.Header().Set("Connection", "close") // see check
	fd, err := c.take()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "the runtime's connection")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err == nil {
		if _, ok := conn.(*net.UnixConn); ok {
			return conn, nil
		}
		err = errors.Join(unix.EAFNOSUPPORT, conn.Close())
	}
	return nil, refusef(http.StatusBadRequest, "send the descriptor that "+NRIVariable+" names", "the descriptor is not of a connected unix socket: %v", err)
}

// NRIVariable is the environment variable with which a runtime names its connection's
// descriptor to a plugin that it starts (github.com/containerd/nri/pkg/api,
// PluginSocketEnvVar).
const NRIVariable = "NRI_PLUGIN_SOCKET"

// ServeNRI hands a connection to a container runtime to the agent, and returns when
// that connection has ended. The caller may close conn at once.
func (c *Client) ServeNRI(ctx context.Context, conn *os.File) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, PathNRI, nil, conn)
	return err
}
