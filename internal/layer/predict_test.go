package layer

import (
	"encoding/hex"
	"testing"
)

// TestOverlayHandle: handles are built as 6.18 built them.
func TestOverlayHandle(t *testing.T) {
	for _, captured := range []string{capturedLower, capturedTmpfs} {
		want := handleOf(t, typeOverlay, captured)
		behind, err := want.backing()
		must(t, err)
		own := behind.handle()
		got, ok := overlayHandle(&own, uuid(want.data()[ovlUUIDAt:]))
		if !ok || got != want {
			t.Errorf("%s, want %s", hex.EncodeToString(got.data()), captured)
		}
	}
	for name, own := range map[string]handle{
		"none":          {},
		"no type":       {size: 8},
		"half a word":   {size: 6, kind: 1},
		"a large type":  {size: 8, kind: 0x100},
		"too long":      {size: maxHandle - 4, kind: 1},
		"no valid type": {size: 8, kind: 0xff},
	} {
		if h, ok := overlayHandle(&own, uuid{}); ok {
			t.Errorf("%s: %+v, want none", name, h)
		}
	}
}
