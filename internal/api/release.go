package api

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/assay-project/assay/internal/announce"
)

// A Released is a container that is guarded no more.
type Released struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Tenant string `json:"tenant"` // whose it was
	PID    int    `json:"pid"`
}

// containerPath begins the path of one container.
const containerPath = announce.Path + "/"

// route returns what a path does.
func (s *Server) route(path string) (route, bool) {
	if strings.HasPrefix(path, containerPath) {
		return route{http.MethodDelete, s.release}, true
	}
	rt, ok := s.routes[path]
	return rt, ok
}

// release ends the guard of a container.
func (s *Server) release(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	if _, err := s.readBody(w, r, 0); err != nil {
		return err
	}
	container := strings.TrimPrefix(r.URL.Path, containerPath)
	if container == "" {
		return refusef(http.StatusBadRequest, "name a container: its id, the start of its id, or its name", "the path names no container")
	}
	released, err := s.backend.Release(r.Context(), container)
	if err != nil {
		return err
	}
	return reply(w, released)
}

// Release has the agent end the guard of a container, which goes on unguarded. The
// container may be an id, the unambiguous start of one, or a name.
func (c *Client) Release(ctx context.Context, container string) (Released, error) {
	return call[Released](ctx, c, http.MethodDelete, containerPath+url.PathEscape(container), nil, nil)
}
