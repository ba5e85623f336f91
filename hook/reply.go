package hook

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/assay-project/assay/internal/announce"
)

// maxReply bounds the agent's whole reply, in bytes.
const maxReply = 64 << 10

const (
	statusOK          = 200
	statusUnavailable = 503
)

// A reply is an HTTP response, reduced to what the hook needs.
type reply struct {
	status int
	body   []byte
}

// request returns the HTTP request that carries body as an announcement.
func request(body []byte) []byte {
	head := "POST " + announce.Path + " HTTP/1.1\r\nHost: assay\r\nContent-Type: application/json\r\n" +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	return append([]byte(head), body...)
}

// errShort says that data ends before the element does.
var errShort = errors.New("it ends too early")

// parseReply parses what has been received so far of an HTTP/1.x response
// (RFC 9112); eof says that nothing will follow. It returns the reply once it is
// complete, nil while more is needed, or an error that wraps ErrReply. Interim
// responses (1xx) are skipped; bytes after the reply are ignored.
func parseReply(data []byte, eof bool) (*reply, error) {
	for {
		r, rest, err := parseOne(data, eof)
		switch {
		case errors.Is(err, errShort) && !eof:
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrReply, err)
		case r.status >= statusOK:
			return r, nil
		}
		data = rest
	}
}

// parseOne parses the response at the start of data and returns what follows it.
func parseOne(data []byte, eof bool) (r *reply, rest []byte, err error) {
	line, rest, err := cutLine(data)
	if err != nil {
		return nil, nil, err
	}
	status, err := parseStatus(line)
	if err != nil {
		return nil, nil, err
	}
	framing, rest, err := parseHeader(rest)
	if err != nil {
		return nil, nil, err
	}
	r = &reply{status: status}
	switch {
	case status < statusOK:
	case framing.chunked:
		r.body, rest, err = parseChunks(rest)
	case framing.length >= 0:
		r.body, rest, err = cutBytes(rest, framing.length)
	case eof:
		r.body, rest = rest, nil
	default:
		err = errShort
	}
	return r, rest, err
}

// parseStatus parses a status line such as "HTTP/1.1 200 OK".
func parseStatus(line string) (int, error) {
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, ok := parseNumber(code, 10, 599)
	if (version != "HTTP/1.1" && version != "HTTP/1.0") || len(code) != 3 || !ok || status < 100 {
		return 0, fmt.Errorf("%q is not an HTTP status line", clip(line))
	}
	return status, nil
}

// A framing says where a body ends.
type framing struct {
	chunked bool
	length  int // -1: not given
}

// parseHeader parses the header fields up to and including the empty line.
func parseHeader(data []byte) (f framing, rest []byte, err error) {
	f.length = -1
	for {
		var line string
		if line, data, err = cutLine(data); err != nil {
			return f, nil, err
		}
		if line == "" {
			break
		}
		name, value, found := strings.Cut(line, ":")
		if !found || name == "" || strings.ContainsAny(name, " \t") {
			return f, nil, fmt.Errorf("%q is not a header field", clip(line))
		}
		if err := f.field(name, strings.Trim(value, " \t")); err != nil {
			return f, nil, err
		}
	}
	if f.chunked && f.length >= 0 {
		return f, nil, errors.New("it has both a content length and a transfer encoding")
	}
	return f, data, nil
}

func (f *framing) field(name, value string) error {
	switch strings.ToLower(name) {
	case "content-length":
		n, ok := parseNumber(value, 10, maxReply)
		if !ok || (f.length >= 0 && f.length != n) {
			return fmt.Errorf("content length %q is not usable", clip(value))
		}
		f.length = n
	case "transfer-encoding":
		if f.chunked || !strings.EqualFold(value, "chunked") {
			return fmt.Errorf("transfer encoding %q is not usable", clip(value))
		}
		f.chunked = true
	}
	return nil
}

// parseChunks parses a chunked body and its trailer.
func parseChunks(data []byte) (body, rest []byte, err error) {
	for {
		var line string
		if line, data, err = cutLine(data); err != nil {
			return nil, nil, err
		}
		size, _, _ := strings.Cut(line, ";")
		n, ok := parseNumber(strings.TrimRight(size, " \t"), 16, maxReply)
		if !ok {
			return nil, nil, fmt.Errorf("%q is not a chunk size", clip(line))
		}
		if n == 0 {
			_, rest, err = parseHeader(data) // the trailer has the form of a header
			return body, rest, err
		}
		var chunk []byte
		if chunk, data, err = cutBytes(data, n); err != nil {
			return nil, nil, err
		}
		body = append(body, chunk...)
		if line, data, err = cutLine(data); err != nil {
			return nil, nil, err
		}
		if line != "" {
			return nil, nil, fmt.Errorf("%q follows a chunk", clip(line))
		}
	}
}

// cutLine returns the line at the start of data without its CR LF or LF.
func cutLine(data []byte) (line string, rest []byte, err error) {
	before, rest, found := bytes.Cut(data, []byte("\n"))
	if !found {
		return "", nil, errShort
	}
	return string(bytes.TrimSuffix(before, []byte("\r"))), rest, nil
}

func cutBytes(data []byte, n int) (head, rest []byte, err error) {
	if len(data) < n {
		return nil, nil, errShort
	}
	return data[:n:n], data[n:], nil
}

// parseNumber parses digits of the given base, without sign or prefix, up to limit.
func parseNumber(s string, base int, limit uint64) (int, bool) {
	n, err := strconv.ParseUint(s, base, 32)
	return int(n), err == nil && n <= limit
}

// clip shortens text for an error message.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
