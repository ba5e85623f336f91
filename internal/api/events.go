package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-project/assay/internal/audit"
)

// An EventFilter says which records a client wants. The zero value stands for
// everything kept in memory.
type EventFilter struct {
	Follow    bool   // go on with what happens from now on
	Since     uint64 // lowest sequence number wanted; 0 is the oldest kept, audit.FromNow none of those
	Tenant    string // "" is any
	Container string // an id, the start of one, or a name; "" is any
	Decision  string // allow, deny; "" is both, and records without a decision
	Op        string // one of audit.Operations; "" is any
}

// values encodes the filter as parameters of [PathEvents].
func (f EventFilter) values() url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.Follow {
		q.Set("follow", "1")
	}
	switch f.Since {
	case 0:
	case audit.FromNow:
		q.Set("since", "now")
	default:
		q.Set("since", strconv.FormatUint(f.Since, 10))
	}
	set("tenant", f.Tenant)
	set("container", f.Container)
	set("decision", f.Decision)
	set("op", f.Op)
	return q
}

// parseFilter is the other direction of values.
func parseFilter(r *http.Request) (EventFilter, error) {
	q, err := query(r, "follow", "since", "tenant", "container", "decision", "op")
	if err != nil {
		return EventFilter{}, err
	}
	f := EventFilter{Tenant: q.Get("tenant"), Container: q.Get("container"), Decision: q.Get("decision"), Op: q.Get("op")}
	if v := q.Get("follow"); v != "" {
		if f.Follow, err = strconv.ParseBool(v); err != nil {
			return EventFilter{}, refusef(http.StatusBadRequest, "use 1 or 0", "parameter follow=%q", v)
		}
	}
	switch v := q.Get("since"); v {
	case "":
	case "now":
		f.Since = audit.FromNow
	default:
		if f.Since, err = strconv.ParseUint(v, 10, 64); err != nil || f.Since == audit.FromNow {
			return EventFilter{}, refusef(http.StatusBadRequest, "use a sequence number or now", "parameter since=%q", v)
		}
	}
	if d := f.Decision; d != "" && d != "allow" && d != "deny" {
		return EventFilter{}, refusef(http.StatusBadRequest, "use allow or deny", "parameter decision=%q", d)
	}
	if op := f.Op; op != "" && !slices.Contains(audit.Operations(), op) {
		return EventFilter{}, refusef(http.StatusBadRequest, "use "+strings.Join(audit.Operations(), ", "), "parameter op=%q", op)
	}
	return f, nil
}

// match reports whether the client wants a record.
func (f EventFilter) match(r *audit.Record) bool {
	return (f.Tenant == "" || f.Tenant == r.Tenant) &&
		(f.Decision == "" || f.Decision == r.Decision) &&
		(f.Op == "" || f.Op == r.Op) &&
		(f.Container == "" || strings.HasPrefix(r.Container.ID, f.Container) || f.Container == r.Container.Name)
}

// events sends records, one a line, until none is left or, if the client
// follows, until the client or the agent goes.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilter(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	st := stream{w: w, rc: http.NewResponseController(w), filter: f, sub: s.backend.Events().Subscribe(f.Since)}
	defer st.sub.Close()
	defer context.AfterFunc(s.streams, func() { //nolint:contextcheck // the server's lifetime bounds a stream, besides the request's
		cancel()
		// A client that does not read must not hold up the agent's end.
		_ = st.rc.SetWriteDeadline(time.Now().Add(partingTime))
	})()
	w.Header().Set("Content-Type", ndjsonType)
	if f.Follow {
		_ = st.rc.Flush() // the client learns that it is subscribed
		st.follow(ctx)
		return nil
	}
	st.sendKept(ctx)
	return nil
}

// A stream sends a subscription's records to one client, at the client's rate.
type stream struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	filter EventFilter
	sub    *audit.Subscription
	line   bytes.Buffer
}

// sendKept sends what was appended up to now.
func (st *stream) sendKept(ctx context.Context) {
	for left := st.sub.Behind(); left > 0; {
		lost, err := st.sendNext(ctx)
		if err != nil {
			return
		}
		left -= min(left, lost+1)
	}
}

// follow sends everything until ctx ends or the client is gone.
func (st *stream) follow(ctx context.Context) {
	for {
		if _, err := st.sendNext(ctx); err != nil {
			return
		}
		if st.sub.Behind() > 0 {
			continue
		}
		if err := st.rc.Flush(); err != nil {
			return
		}
	}
}

// sendNext waits for the next record and sends it if the client wants it, after
// a line that says how many were lost before it.
func (st *stream) sendNext(ctx context.Context) (lost uint64, err error) {
	rec, lost, err := st.sub.Next(ctx)
	if err != nil {
		return 0, err
	}
	st.line.Reset()
	if lost > 0 {
		fmt.Fprintf(&st.line, "{\"lost\":%d}\n", lost)
	}
	if st.filter.match(&rec) {
		if rec.AppendLine(&st.line) != nil {
			st.line.WriteString("{\"lost\":1}\n") // a record that JSON cannot express
		}
	}
	if st.line.Len() == 0 {
		return lost, nil
	}
	_, err = st.w.Write(st.line.Bytes())
	return lost, err
}
