package hook

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestParseReply(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	tests := []struct {
		name, data string
		eof        bool
		status     int    // 0: more is needed
		body       string // of the reply
		err        string // part of the error
	}{
		{name: "content length", data: ok + "Content-Length: 2\r\n\r\n{}", status: 200, body: "{}"},
		{name: "what follows is ignored", data: ok + "content-length: 2\r\n\r\n{}more", status: 200, body: "{}"},
		{name: "bare newlines", data: "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", status: 200, body: "{}"},
		{name: "no reason phrase", data: "HTTP/1.0 403\r\nContent-Length: 0\r\n\r\n", status: 403},
		{name: "equal lengths", data: ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", status: 200, body: "{}"},
		{name: "chunked", data: ok + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\n{\"a\r\nA \r\n\": 1234567\r\n1\r\n}\r\n0\r\nT: v\r\n\r\n", status: 200, body: `{"a": 1234567}`},
		{name: "until the end", data: ok + "\r\n{}", eof: true, status: 200, body: "{}"},
		{name: "interim response", data: "HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + ok + "Content-Length: 1\r\n\r\n1", status: 200, body: "1"},

		{name: "nothing yet"},
		{name: "half a status line", data: "HTTP/1.1 2"},
		{name: "half a header", data: ok + "Content-Le"},
		{name: "half a body", data: ok + "Content-Length: 2\r\n\r\n{"},
		{name: "half a chunk size", data: ok + "Transfer-Encoding: chunked\r\n\r\n3"},
		{name: "half a chunk", data: ok + "Transfer-Encoding: chunked\r\n\r\n3\r\n{}"},
		{name: "chunk without its line end", data: ok + "Transfer-Encoding: chunked\r\n\r\n3\r\n{ }"},
		{name: "half a trailer", data: ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n"},
		{name: "length unknown", data: ok + "\r\n{}"},
		{name: "interim response only", data: "HTTP/1.1 100 Continue\r\n\r\n"},

		{name: "closed at once", eof: true, err: "ends too early"},
		{name: "closed in the header", data: ok + "Content-Le", eof: true, err: "ends too early"},
		{name: "closed in the body", data: ok + "Content-Length: 2\r\n\r\n{", eof: true, err: "ends too early"},
		{name: "closed in a chunk", data: ok + "Transfer-Encoding: chunked\r\n\r\n3\r\n{}", eof: true, err: "ends too early"},
		{name: "not HTTP", data: "220 mail ESMTP\r\n", err: "not an HTTP status line"},
		{name: "HTTP/2", data: "HTTP/2 200 OK\r\n\r\n", err: "not an HTTP status line"},
		{name: "status with a sign", data: "HTTP/1.1 +20 OK\r\n\r\n", err: "not an HTTP status line"},
		{name: "status out of range", data: "HTTP/1.1 600 No\r\n\r\n", err: "not an HTTP status line"},
		{name: "status under 100", data: "HTTP/1.1 099 No\r\n\r\n", err: "not an HTTP status line"},
		{name: "status too long", data: "HTTP/1.1 0200 OK\r\n\r\n", err: "not an HTTP status line"},
		{name: "field without a colon", data: ok + "oops\r\n\r\n", err: "not a header field"},
		{name: "folded field", data: ok + "A: b\r\n c: d\r\n\r\n", err: "not a header field"},
		{name: "length with a sign", data: ok + "Content-Length: +2\r\n\r\n{}", err: `content length "+2"`},
		{name: "length too large", data: ok + "Content-Length: 65537\r\n\r\n", err: "content length"},
		{name: "lengths differ", data: ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", err: "content length"},
		{name: "length and chunks", data: ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", err: "both"},
		{name: "chunks and length", data: ok + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", err: "both"},
		{name: "other encoding", data: ok + "Transfer-Encoding: gzip\r\n\r\n", err: "transfer encoding"},
		{name: "encoded twice", data: ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", err: "transfer encoding"},
		{name: "bad chunk size", data: ok + "Transfer-Encoding: chunked\r\n\r\n0x3\r\n", err: "not a chunk size"},
		{name: "chunk too large", data: ok + "Transfer-Encoding: chunked\r\n\r\n10001\r\n", err: "not a chunk size"},
		{name: "chunk longer than said", data: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n{ }\r\n", err: "follows a chunk"},
		{name: "long garbage is clipped", data: strings.Repeat("x", 500) + "\r\n", err: strings.Repeat("x", 80) + "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := parseReply([]byte(tt.data), tt.eof)
			if tt.err != "" {
				if !errors.Is(err, ErrReply) || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want ErrReply with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r == nil {
				if tt.status != 0 {
					t.Fatal("asks for more")
				}
				return
			}
			if r.status != tt.status || string(r.body) != tt.body {
				t.Fatalf("got %d %q, want %d %q", r.status, r.body, tt.status, tt.body)
			}
		})
	}
}

// FuzzParseReply checks that no input panics, that a reply is no larger than
// what it came from, and that how much has arrived makes no difference: a reply
// complete in a prefix stays the same reply.
func FuzzParseReply(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 403 No\r\n\r\nbody",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"\r\n\r\n",
	} {
		f.Add([]byte(seed), uint(len(seed)/2), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint, eof bool) {
		r, err := parseReply(data, eof)
		switch {
		case err != nil && (r != nil || !errors.Is(err, ErrReply)):
			t.Fatalf("reply %v with error %v", r, err)
		case err == nil && r == nil && eof:
			t.Fatal("asks for more after the end")
		case r != nil && len(r.body) > len(data):
			t.Fatalf("%d bytes of body from %d bytes", len(r.body), len(data))
		}
		early, earlyErr := parseReply(data[:min(cut, uint(len(data)))], false)
		if earlyErr != nil && err == nil {
			t.Fatalf("error %v for a prefix, none for the whole", earlyErr)
		}
		if early == nil {
			return
		}
		if err != nil || r == nil || r.status != early.status || !bytes.Equal(r.body, early.body) {
			t.Fatalf("prefix gives %v, the whole %v and %v", early, r, err)
		}
	})
}
