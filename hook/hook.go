// Package hook is the OCI hook: it reads the container's state as the runtime
// hands it over, finds the root filesystem, announces the container on the
// agent's socket and waits for the reply.
//
// It owns: the stages that can guard, reading the state and the bundle, and the
// few lines of HTTP that the announcement takes. It must not own: any decision
// about the container (internal/guard), nor exit codes and flags
// (cmd/assay-hook). It starts no goroutine and imports neither net nor
// net/http, because its start-up time is added to every container's.
//
// Who is next: the agent, which takes the announcement at announce.Path and
// answers once every mark is in place.
package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/assay-project/assay/internal/announce"
)

// DefaultSocket is where the agent listens unless configured otherwise.
const DefaultSocket = "/run/assay/agent.sock"

// DefaultTimeout is how long the hook waits for the agent unless told otherwise.
const DefaultTimeout = 30 * time.Second

// DefaultWait is how long the hook waits for a missing agent unless told otherwise.
const DefaultWait = 5 * time.Second

// askEvery is the pause between two attempts to reach a missing agent.
const askEvery = 50 * time.Millisecond

// Options say how to announce a container. Socket, Stage and Timeout are
// required.
type Options struct {
	Stage  Stage
	Socket string // the agent's, an absolute path of at most MaxSocket bytes
	// Namespace selects the tenant. It must come from the platform: what the
	// container's annotations say about namespaces is only a label, unless Runtime
	// is set.
	Namespace string
	// Runtime is whose Kubernetes service starts the container: it says in the
	// container's annotations whose it is, where pods cannot. Namespace stays empty then.
	Runtime announce.Runtime
	// Exempt are the namespaces, by their exact names, whose containers start without
	// an agent that is missing. It needs Runtime.
	Exempt  []string
	Timeout time.Duration // for everything that involves the agent
	// Wait is how much of Timeout may be spent on waiting for a missing agent to
	// come back, as when it is being replaced; 0 is not at all.
	Wait time.Duration
}

// MaxSocket is the longest path a unix socket can have, in bytes (unix(7)).
const MaxSocket = 107

// Errors that tell apart why a container was not guarded. A refusal by the
// agent is an *announce.Refusal instead.
var (
	// ErrState: the runtime's state or the bundle cannot be used.
	ErrState = errors.New("unusable container state")
	// ErrAgentMissing: nothing listens on the socket, or the agent says that it is
	// stopping. It is the only error that an operator may choose to ignore.
	ErrAgentMissing = errors.New("the agent is not running")
	// ErrWithoutAgent: as ErrAgentMissing, and Options lets this container start all
	// the same. It comes without a wait.
	ErrWithoutAgent = errors.New("it starts unguarded")
	// ErrForeignSocket: the socket is served by somebody other than root.
	ErrForeignSocket = errors.New("the socket is not served by root")
	// ErrTimeout: the agent is there and did not reply in time.
	ErrTimeout = errors.New("the agent did not reply in time")
	// ErrReply: what came back is not a reply of the agent.
	ErrReply = errors.New("unusable reply from the agent")
)

// Guard reads the container's state from stdin, announces the container and
// waits until the agent has confirmed it by its id: only then is err nil. Else
// err is an *announce.Refusal by the agent or wraps ErrState, ErrAgentMissing,
// ErrWithoutAgent, ErrForeignSocket, ErrTimeout or ErrReply. The container's id is also returned
// with an error, empty if it could not be read, so that messages can name it.
func Guard(stdin io.Reader, opts *Options) (id string, err error) {
	state, err := readState(stdin)
	if err != nil {
		return state.ID, err
	}
	c, err := announcement(state, opts)
	if err != nil {
		return state.ID, err
	}
	return c.ID, send(&c, opts)
}

// announcement builds what the agent is told about the container of state. It
// reads the bundle's config.json and nothing else.
func announcement(state *specs.State, opts *Options) (announce.Container, error) {
	rootfs, err := rootfs(state.Bundle)
	if err != nil {
		return announce.Container{}, err
	}
	c := announce.Container{
		ID:        state.ID,
		PID:       state.Pid,
		Bundle:    state.Bundle,
		Rootfs:    rootfs,
		Namespace: opts.Namespace,
		Source:    "hook:" + string(opts.Stage),
	}
	describe(&c, state.Annotations)
	if opts.Runtime != "" {
		if err := identify(&c, opts.Runtime, state.Annotations); err != nil {
			return announce.Container{}, err
		}
	}
	if err := c.Validate(); err != nil {
		return announce.Container{}, fmt.Errorf("%w: %w", ErrState, err)
	}
	return c, nil
}

// send tells the agent of c and waits for its reply.
func send(c *announce.Container, opts *Options) error {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the announcement: %w", err)
	}
	if len(body) > announce.MaxBytes {
		return fmt.Errorf("%w: the announcement has %d bytes, at most %d are allowed", ErrState, len(body), announce.MaxBytes)
	}
	body = request(body)
	began := time.Now()
	deadline, patience := began.Add(opts.Timeout), began.Add(opts.Wait)
	excuse := opts.excuse(c)
	for {
		err := ask(c.ID, body, opts.Socket, deadline)
		if excuse != "" && errors.Is(err, ErrAgentMissing) {
			return fmt.Errorf("%w, %s: %w", ErrWithoutAgent, excuse, err)
		}
		away := errors.Is(err, ErrAgentMissing) || errors.Is(err, errHungUp)
		if !away || time.Until(patience) <= askEvery {
			return err
		}
		<-time.After(askEvery)
		if time.Until(deadline) <= 0 {
			return err // not that the agent did not reply in time
		}
	}
}

// errHungUp says that the agent closed the connection before its first byte. One
// that was killed does, and is missing the next time; one that goes on doing it is
// there and fails, so that it does not count as missing.
var errHungUp = errors.New("the agent hung up before it replied")

// ask announces the container with that id once.
func ask(id string, request []byte, socket string, deadline time.Time) error {
	conn, err := dial(socket, deadline)
	if err != nil {
		return err
	}
	defer conn.close()
	r, err := conn.roundTrip(request)
	if err != nil {
		return err
	}
	return r.verdict(id)
}

// verdict says what r means for the container with that id.
func (r *reply) verdict(id string) error {
	if r.status == statusOK {
		var g announce.Guarded
		if err := json.Unmarshal(r.body, &g); err != nil {
			return fmt.Errorf("%w: %w", ErrReply, err)
		}
		if g.ID != id {
			return fmt.Errorf("%w: it is about container %q", ErrReply, g.ID)
		}
		return nil
	}
	refusal := new(announce.Refusal)
	if err := json.Unmarshal(r.body, refusal); err != nil || refusal.Message == "" {
		return fmt.Errorf("%w: status %d (is something else listening on the socket?)", ErrReply, r.status)
	}
	// The status alone would not do: an agent that lacks something has it, too.
	if r.status == statusUnavailable && refusal.Message == announce.Stopping {
		return fmt.Errorf("%w: %w", ErrAgentMissing, refusal)
	}
	return refusal
}
