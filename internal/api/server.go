package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/assay-project/assay/internal/announce"
)

const (
	// headerTime is how long a client may take to send a request's header, and
	// defaultBodyTime to send its body.
	headerTime      = 5 * time.Second
	defaultBodyTime = 10 * time.Second
	// idleTime is how long a connection may be kept between two requests.
	idleTime = 2 * time.Minute
	// partingTime is how long a stream's client may take to read what is under
	// way when the agent stops.
	partingTime = time.Second
	// maxHeader bounds a request's header in bytes.
	maxHeader = 64 << 10
)

// A Server speaks HTTP on a [Listener]. There is no limit on how long a call
// into the backend may take: guarding a container takes as long as it takes,
// and a caller that hangs up ends the call's context.
type Server struct {
	backend Backend
	logger  *slog.Logger
	http    *http.Server
	routes  map[string]route // by path
	// bodyTime is how long a client may take to send a request's body.
	bodyTime time.Duration
	// streams ends when the server stops, and every stream of events or scan with it.
	streams    context.Context
	endStreams context.CancelFunc
}

// A route is what a path does. A handler that returns an error has sent nothing.
type route struct {
	method string
	handle func(http.ResponseWriter, *http.Request) error
}

// NewServer returns a server of backend; [Server.Serve] starts it. The HTTP
// status of a backend's error is that of its HTTPStatus() int method, else 409
// for a *announce.Refusal, else 500.
func NewServer(backend Backend, logger *slog.Logger) *Server {
	s := &Server{backend: backend, logger: logger, bodyTime: defaultBodyTime}
	s.streams, s.endStreams = context.WithCancel(context.Background())
	s.routes = map[string]route{
		announce.Path: {http.MethodPost, s.announce},
		PathStatus:    {http.MethodGet, s.status},
		PathEvents:    {http.MethodGet, s.events},
		PathCheck:     {http.MethodPost, s.check},
		PathVerdicts:  {http.MethodGet, s.verdicts},
		PathExplain:   {http.MethodGet, s.explain},
		PathScan:      {http.MethodPost, s.scan},
		PathAhead:     {http.MethodPost, s.ahead},
		PathNRI:       {http.MethodPost, s.nri},
	}
	s.http = &http.Server{
		Handler:                      s,
		ConnContext:                  withConn,
		ReadHeaderTimeout:            headerTime,
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve answers until [Server.Shutdown], then returns nil; before, only an
// error of the listener ends it. It closes ln.
func (s *Server) Serve(ln *Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown takes no more requests, ends streams of events and scans, and waits for
// the other calls until ctx ends; then it hangs up on those that are left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.endStreams()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	return err
}

// ServeHTTP answers one request. It is not for other servers: descriptors and
// peers are known only for connections of a [Listener].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c, ok := connOf(r.Context()); ok {
		defer c.drop()
	}
	rt, ok := s.route(r.URL.Path)
	var err error
	switch {
	case !ok:
		err = refusef(http.StatusNotFound, "see docs/api.md for the paths there are", "there is no %q", r.URL.Path)
	case r.Method != rt.method:
		w.Header().Set("Allow", rt.method)
		err = refusef(http.StatusMethodNotAllowed, "use "+rt.method, "%s does not take %s", r.URL.Path, r.Method)
	default:
		err = rt.handle(w, r)
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

// fail sends an error as a refusal.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, body := encodeError(err)
	s.logger.Warn("request refused", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	send(w, status, body)
}

// reply sends v with status 200.
func reply(w http.ResponseWriter, v any) error {
	body, err := encodeJSON(v)
	if err != nil {
		return err
	}
	send(w, http.StatusOK, body)
	return nil
}

func send(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails only if the client is gone
}

// announce guards a container.
func (s *Server) announce(w http.ResponseWriter, r *http.Request) error {
	body, err := s.readBody(w, r, announce.MaxBytes)
	if err != nil {
		return err
	}
	c, err := decodeAnnouncement(body)
	if err != nil {
		return refusef(http.StatusBadRequest, "the hook and the agent must be of the same version", "announcement: %v", err)
	}
	guarded, err := s.backend.Announce(r.Context(), c)
	if err != nil {
		return err
	}
	return reply(w, guarded)
}

// status describes the agent.
func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	st := s.backend.Status(r.Context())
	fillEmpty(&st)
	return reply(w, st)
}

// check scans the descriptor that came with the request.
func (s *Server) check(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "tenant", "path")
	if err != nil {
		return err
	}
	if _, err := s.readBody(w, r, 0); err != nil {
		return err
	}
	c, ok := connOf(r.Context())
	if !ok {
		return errors.New("the request did not come through the agent's socket")
	}
	// The reply must not overtake the closing of unclaimed descriptors, or the
	// next request's could be taken for this one's.
	w.Header().Set("Connection", "close")
	fd, err := c.take()
	if err != nil {
		return err
	}
	defer closeDescriptor(fd)
	if err := checkable(fd); err != nil {
		return err
	}
	res, err := s.backend.Check(r.Context(), fd, q.Get("tenant"), q.Get("path"))
	if err != nil {
		return err
	}
	notNil(&res.Scanners)
	return reply(w, res)
}
