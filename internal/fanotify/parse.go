package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// metadataLen is the size of struct fanotify_event_metadata (fanotify(7)).
const metadataLen = 24

// errMalformed says that the kernel's buffer does not hold what fanotify(7)
// promises. It is fatal: nothing behind the spot can be trusted, and openers wait there.
var errMalformed = errors.New("malformed fanotify event")

// metadata is one event as the kernel wrote it.
type metadata struct {
	mask uint64
	fd   int32 // the event's descriptor; negative: none, or an errno (FAN_REPORT_FD_ERROR)
	pid  int32 // thread id with FAN_REPORT_TID, process id without
}

// parseEvent reads the first event of buf and returns what follows it. buf is
// what one read(2) of a group returned, or the rest of it.
func parseEvent(buf []byte) (m metadata, rest []byte, err error) {
	if len(buf) < metadataLen {
		return m, nil, fmt.Errorf("%w: %d bytes left, an event has %d", errMalformed, len(buf), metadataLen)
	}
	eventLen := binary.NativeEndian.Uint32(buf[0:4])
	if buf[4] != unix.FANOTIFY_METADATA_VERSION {
		return m, nil, fmt.Errorf("%w: version %d, want %d", errMalformed, buf[4], unix.FANOTIFY_METADATA_VERSION)
	}
	headLen := binary.NativeEndian.Uint16(buf[6:8])
	if headLen < metadataLen || eventLen < uint32(headLen) || uint64(eventLen) > uint64(len(buf)) {
		return m, nil, fmt.Errorf("%w: event of %d bytes with a head of %d in %d bytes", errMalformed, eventLen, headLen, len(buf))
	}
	m.mask = binary.NativeEndian.Uint64(buf[8:16])
	m.fd = int32(binary.NativeEndian.Uint32(buf[16:20]))
	m.pid = int32(binary.NativeEndian.Uint32(buf[20:24]))
	return m, buf[eventLen:], nil
}
