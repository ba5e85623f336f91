package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

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

// The values of [NRIStatus.Mode], as in the configuration.
const (
	NRIAuto = "auto"
	NRIOn   = "on"
	NRIOff  = "off"
)

// NRIStatus is the plugin by which a container runtime tells of containers.
type NRIStatus struct {
	Mode      string    `json:"mode"`             // auto, on, off
	Socket    string    `json:"socket,omitempty"` // of the runtime
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // when connected last changed
	// Connection is who made the last connection, external: the agent; pre-installed: the
	// runtime. The next three are what the runtime said on it.
	Connection     string `json:"connection,omitempty"`
	Runtime        string `json:"runtime,omitempty"`
	RuntimeVersion string `json:"runtimeVersion,omitempty"`
	NRIVersion     string `json:"nriVersion,omitempty"`
	Connections    uint64 `json:"connections"`     // so far
	Error          string `json:"error,omitempty"` // why there is none, or why the one before ended
	// Running is about the containers that ran when the agent connected.
	Running NRIProgress `json:"running"`
	Hooked  uint64      `json:"hooked"`  // containers that got the hook
	Refused uint64      `json:"refused"` // containers that were kept from starting
	Open    uint64      `json:"open"`    // containers that started unguarded
	Exempt  uint64      `json:"exempt"`  // containers that started and are exempt
	Panics  uint64      `json:"panics"`  // defects of the agent that were caught
}

// NRIProgress is how far the guarding of containers that ran before has come.
type NRIProgress struct {
	Containers int    `json:"containers"` // all of them
	Guarded    int    `json:"guarded"`    // or exempt
	UnderWay   int    `json:"underWay"`
	Gone       int    `json:"gone"`   // ended meanwhile
	Failed     int    `json:"failed"` // run unguarded
	Error      string `json:"error,omitempty"`
}

func fillNRI(n *NRIStatus) {
	if n.Mode == "" {
		n.Mode = NRIOff
	}
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
