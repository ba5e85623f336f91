package fanotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// event encodes an event as the kernel does.
func event(length uint32, version uint8, head uint16, mask uint64, fd, pid int32, extra int) []byte {
	var b bytes.Buffer
	for _, v := range []any{length, version, uint8(0), head, mask, fd, pid} {
		_ = binary.Write(&b, binary.NativeEndian, v)
	}
	b.Write(make([]byte, extra))
	return b.Bytes()
}

func TestParseEvent(t *testing.T) {
	one := event(24, unix.FANOTIFY_METADATA_VERSION, 24, uint64(OpOpen), 7, 1234, 0)
	withInfo := event(32, unix.FANOTIFY_METADATA_VERSION, 24, uint64(OpExec), 8, 5, 8)
	m, rest, err := parseEvent(append(withInfo, one...))
	if err != nil || m != (metadata{uint64(OpExec), 8, 5}) {
		t.Fatalf("first event: %+v, %v", m, err)
	}
	m, rest, err = parseEvent(rest)
	if err != nil || m != (metadata{uint64(OpOpen), 7, 1234}) || len(rest) != 0 {
		t.Fatalf("second event: %+v, %d bytes left, %v", m, len(rest), err)
	}
}

func TestParseEventMalformed(t *testing.T) {
	const version = unix.FANOTIFY_METADATA_VERSION
	for name, buf := range map[string][]byte{
		"short":             make([]byte, 23),
		"other version":     event(24, version+1, 24, 0, 7, 1, 0),
		"head too short":    event(24, version, 16, 0, 7, 1, 0),
		"shorter than head": event(20, version, 24, 0, 7, 1, 0),
		"longer than buf":   event(32, version, 24, 0, 7, 1, 0),
		"head beyond event": event(24, version, 32, 0, 7, 1, 0),
	} {
		if m, _, err := parseEvent(buf); !errors.Is(err, errMalformed) {
			t.Errorf("%s: got %+v, %v", name, m, err)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(event(24, unix.FANOTIFY_METADATA_VERSION, 24, uint64(OpOpen), 7, 1, 0))
	f.Add(event(32, unix.FANOTIFY_METADATA_VERSION, 24, uint64(OpExec), -13, 1, 8))
	f.Add(event(0, unix.FANOTIFY_METADATA_VERSION, 24, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for len(buf) > 0 {
			_, rest, err := parseEvent(buf)
			if err != nil {
				return
			}
			if len(rest) >= len(buf) {
				t.Fatalf("%d bytes left of %d: a reader would never end", len(rest), len(buf))
			}
			buf = rest
		}
	})
}
