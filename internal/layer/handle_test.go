package layer

import (
	"encoding/hex"
	"testing"
)

// Handles that 6.18 gave.
const (
	capturedLower = "00000000fb1d00010000000000000000000000000000000091a19800f47bb216"         // lower file on ext4 without a UUID
	capturedUpper = "00000000fb1d040100000000000000000000000000000000f1a19800e663bd36"         // born in the upper directory
	capturedTmpfs = "00000000fb21000195964e22d5394eddbbb3c731a7d8936916ad581f0600000000000000" // lower file on tmpfs
)

func handleOf(t *testing.T, kind int32, data string) handle {
	t.Helper()
	raw, err := hex.DecodeString(data)
	if err != nil || len(raw) > maxHandle {
		t.Fatal(data, err)
	}
	h := handle{kind: kind, size: uint32(len(raw))}
	copy(h.bytes[:], raw)
	return h
}

func TestBacking(t *testing.T) {
	for data, want := range map[string]struct {
		upper bool
		own   string
	}{
		capturedLower: {false, "91a19800f47bb216"},
		capturedUpper: {true, "f1a19800e663bd36"},
		capturedTmpfs: {false, "16ad581f0600000000000000"},
	} {
		h, own := handleOf(t, typeOverlay, data), handleOf(t, 1, want.own)
		b, err := h.backing()
		if err != nil || b.upper != want.upper || !b.is(&own) {
			t.Errorf("%s: %+v, %v", data, b, err)
		}
		for what, other := range map[string]handle{
			"another type": handleOf(t, 2, want.own),
			"a part":       handleOf(t, 1, want.own[:8]),
			"nothing":      handleOf(t, 1, ""),
			"another":      handleOf(t, 1, "00"+want.own[2:]),
			"more":         handleOf(t, 1, want.own+"00"),
		} {
			if b.is(&other) {
				t.Errorf("%s: taken for %s", data, what)
			}
		}
	}
	for what, h := range map[string]handle{
		"a handle of ext4":    handleOf(t, 1, "91a19800f47bb216"),
		"of another type":     handleOf(t, 0x81, capturedLower),
		"cut short":           handleOf(t, typeOverlay, capturedLower[:46]),
		"without a handle":    handleOf(t, typeOverlay, "00000000fb15000100000000000000000000000000000000"),
		"another version":     handleOf(t, typeOverlay, "00000001"+capturedLower[8:]),
		"another magic":       handleOf(t, typeOverlay, "00000000fc"+capturedLower[10:]),
		"longer than it is":   handleOf(t, typeOverlay, "00000000fb1e"+capturedLower[12:]),
		"an unknown flag":     handleOf(t, typeOverlay, "00000000fb1d08"+capturedLower[14:]),
		"larger than allowed": {kind: typeOverlay, size: maxHandle + 1},
	} {
		if b, err := h.backing(); err == nil {
			t.Errorf("%s: %+v, want an error", what, b)
		}
	}
}

// FuzzBacking: no handle makes it read beyond what the kernel gave.
func FuzzBacking(f *testing.F) {
	for _, seed := range []string{capturedLower, capturedUpper, capturedTmpfs, ""} {
		raw, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint32(len(raw)), raw)
	}
	f.Fuzz(func(t *testing.T, size uint32, raw []byte) {
		h := handle{kind: typeOverlay, size: size}
		copy(h.bytes[:], raw)
		b, err := h.backing()
		if err != nil {
			return
		}
		if len(b.data) == 0 || len(b.data)+ovlDataAt > int(size) {
			t.Errorf("%d bytes of %d", len(b.data), size)
		}
		own := handle{kind: int32(b.kind), size: uint32(len(b.data))}
		copy(own.bytes[:], b.data)
		if !b.is(&own) {
			t.Error("not its own handle")
		}
	})
}
