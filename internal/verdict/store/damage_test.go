package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/verdict"
)

func encodeSum(sum uint32) []byte { return binary.LittleEndian.AppendUint32(nil, sum) }

// content returns a store's file with several blocks of two verdicts per file, as
// TestContentIsAFile makes sure.
func content(tb testing.TB, blocks, filesEach uint64) []byte {
	tb.Helper()
	var id fileID
	_, _ = rand.Read(id[:]) // never fails
	e := newEncoder()
	b := encodeHeader(e.sums, id)
	for n := range blocks {
		c := newCache()
		keep(c, n*filesEach, (n+1)*filesEach)
		c.Records(func(r verdict.Record) bool { return e.add(&item{record: r}) })
		b = e.appendBlock(b, id, int64(len(b)))
	}
	return b
}

func TestContentIsAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := content(t, 3, 40)
	if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, c := open(t, dir, Options{})
	if st := s.Status(); count(t, c, 120) != 240 || st.Damage != nil || st.Bytes != int64(len(b)) {
		t.Errorf("%+v", st)
	}
}

// readAll reads a file's content into a new cache, as Open does.
func readAll(b []byte) (*verdict.Cache, reading) {
	c := verdict.New(verdict.Options{}) // nobody uses a layer: the labels come from the file
	sums := newChecksummer()
	if len(b) < headerBytes {
		return c, reading{}
	}
	id, err := decodeHeader(sums, b[:headerBytes])
	if err != nil {
		return c, reading{}
	}
	l := newLoader(c)
	defer l.finish()
	r := reader{cache: c, sums: sums, id: id, put: l.put}
	if err := r.read(bytes.NewReader(b), int64(len(b))); err != nil {
		panic(err) // a bytes.Reader has no errors
	}
	return c, r.got
}

// TestEveryBitFlip flips each bit of a file: what is read then was written, and
// only the block that was hit is lost.
func TestEveryBitFlip(t *testing.T) {
	t.Parallel()
	const blocks, filesEach = 2, 3
	b := content(t, blocks, filesEach)
	all := 2 * blocks * filesEach
	if c, got := readAll(b); count(t, c, blocks*filesEach) != all || got.bad != 0 || got.end != int64(len(b)) {
		t.Fatalf("undamaged: %+v", got)
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		c, _ := readAll(b)
		if n := count(t, c, blocks*filesEach); bit/8 >= headerBytes && n < all-2*filesEach {
			t.Errorf("bit %d: only %d of %d verdicts are left", bit, n, all)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

// TestEveryLength cuts a file at each length: all blocks before the cut are there.
func TestEveryLength(t *testing.T) {
	t.Parallel()
	const blocks, filesEach = 3, 3
	b := content(t, blocks, filesEach)
	before := 0
	for length := range len(b) + 1 {
		c, got := readAll(b[:length])
		n := count(t, c, blocks*filesEach)
		if n < before || n%(2*filesEach) != 0 || got.end > int64(length+align) {
			t.Fatalf("length %d: %d verdicts, after %d; %+v", length, n, before, got)
		}
		before = n
	}
	if before != 2*blocks*filesEach {
		t.Errorf("%d verdicts in the end", before)
	}
}

// TestMixedUp moves, swaps, doubles and exchanges blocks and records that verify
// where they stand.
func TestMixedUp(t *testing.T) {
	t.Parallel()
	const blocks, filesEach = 3, 4
	good, other := content(t, blocks, filesEach), content(t, blocks, filesEach)
	size := (len(good) - headerBytes) / blocks
	block := func(b []byte, n int) []byte { return b[headerBytes+n*size : headerBytes+(n+1)*size] }
	dictionary := int(binary.LittleEndian.Uint32(block(good, 0)[20:]))
	records := blockHeader + dictionary
	resum := func(b []byte) { // as a defect would that checksums what it mixed up
		sums := newChecksummer()
		length := binary.LittleEndian.Uint32(b[4:])
		binary.LittleEndian.PutUint32(b[16:], sums.of(b[blockHeader:blockHeader+length]))
		binary.LittleEndian.PutUint32(b[28:], sums.of(good[24:40], b[:28]))
	}
	beyond := func(b []byte, field int) { // of the dictionary, in the finds of the first block
		for r := records; r < records+8*recordBytes; r += recordBytes {
			if block(b, 0)[r] == opMalicious {
				copy(block(b, 0)[r+field:], []byte{0xff, 0xff})
			}
		}
		resum(block(b, 0))
	}
	tests := []struct {
		name string
		mix  func(b []byte)
		want int // verdicts at least
	}{
		{"blocks swapped", func(b []byte) { copy(block(b, 0), block(good, 1)); copy(block(b, 1), block(good, 0)) }, 8},
		{"block of another file", func(b []byte) { copy(block(b, 1), block(other, 1)) }, 16},
		{"all but the header of another file", func(b []byte) { copy(b[headerBytes:], other[headerBytes:]) }, 0},
		{"zeros", func(b []byte) { clear(block(b, 1)) }, 16},
		{"layers exchanged in the dictionary", func(b []byte) {
			layer := block(b, 0)[blockHeader+2:]
			layer[0] ^= 1
			resum(block(b, 0))
		}, 16},
		{"record of another scanner", func(b []byte) { block(b, 0)[records+4] ^= 1; resum(block(b, 0)) }, 16},
		{"record of another layer", func(b []byte) { block(b, 0)[records+2] ^= 1; resum(block(b, 0)) }, 16},
		{"clean for malicious", func(b []byte) {
			for r := records; r < records+8*recordBytes; r += recordBytes {
				block(b, 0)[r] = opClean
			}
			resum(block(b, 0))
		}, 16},
		{"no such layer", func(b []byte) { beyond(b, 2) }, 16},
		{"no such generation", func(b []byte) { beyond(b, 4) }, 16},
		{"no such signature", func(b []byte) { beyond(b, 6) }, 16},
		{"more in the dictionary than there is", func(b []byte) { block(b, 0)[blockHeader] = 0xff; resum(block(b, 0)) }, 16},
		{"length beyond the end", func(b []byte) {
			binary.LittleEndian.PutUint32(block(b, 2)[4:], maxContent)
			binary.LittleEndian.PutUint32(block(b, 2)[20:], maxContent-8*recordBytes)
			binary.LittleEndian.PutUint32(block(b, 2)[28:], newChecksummer().of(good[24:40], block(b, 2)[:28]))
		}, 16},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := bytes.Clone(good)
			tt.mix(b)
			c, got := readAll(b)
			if n := count(t, c, blocks*filesEach); n < tt.want || n == 2*blocks*filesEach {
				t.Errorf("%d verdicts, want at least %d; %+v", n, tt.want, got)
			}
		})
	}
}

// TestDamageIsRepaired: a damaged file is written anew, with what was in it.
func TestDamageIsRepaired(t *testing.T) {
	t.Parallel()
	const blocks, filesEach = 4, 100
	b := content(t, blocks, filesEach)
	b[len(b)/2] ^= 0xff
	dir := t.TempDir()
	file := filepath.Join(dir, fileName)
	if err := os.WriteFile(file, append(b, "half a blo"...), 0o600); err != nil {
		t.Fatal(err)
	}
	s, c := open(t, dir, eager())
	left := count(t, c, blocks*filesEach)
	if st := s.Status(); st.Damage == nil || st.DamagedBytes == 0 || left < 2*filesEach*(blocks-1) {
		t.Errorf("%d left, %+v", left, st)
	}
	if err := s.Flush(t.Context()); err != nil || s.Status().Rewrites == 0 {
		t.Errorf("%v %+v", err, s.Status())
	}
	closeStore(t, s)
	s, c = open(t, dir, eager())
	if st := s.Status(); st.Damage != nil || count(t, c, blocks*filesEach) != left {
		t.Errorf("%+v", st)
	}
}

// TestHeadersOfManyBlocks bounds what a file costs that is all headers.
func TestHeadersOfManyBlocks(t *testing.T) {
	t.Parallel()
	b := content(t, 1, 1)
	sums := newChecksummer()
	for place := headerBytes; place < 8<<20; place += align {
		h := make([]byte, align)
		binary.LittleEndian.PutUint32(h, blockMagic)
		binary.LittleEndian.PutUint32(h[4:], maxContent)
		binary.LittleEndian.PutUint64(h[8:], uint64(place))
		binary.LittleEndian.PutUint32(h[20:], maxContent)
		binary.LittleEndian.PutUint32(h[28:], sums.of(b[24:40], h[:28]))
		b = append(b[:place], h...)
	}
	r := reader{cache: newCache(), sums: sums, id: fileID(b[24:40]), put: func(*item) { t.Error("a record") }}
	if err := r.read(bytes.NewReader(b), int64(len(b))); err != nil || r.got.end != headerBytes {
		t.Errorf("%v %+v", err, r.got)
	}
	if r.got.summed > 3*int64(len(b)) {
		t.Errorf("%d bytes were checksummed of %d", r.got.summed, len(b))
	}
}

// FuzzRead reads damaged files: never a panic, never anything that was not
// written, and whatever is read can be read again.
func FuzzRead(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(content(f, 3, 4))
	f.Add(content(f, 1, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, got := readAll(b)
		if got.end > int64(len(b))+align || got.bad < 0 {
			t.Fatalf("%+v of %d bytes", got, len(b))
		}
		c.Records(func(r verdict.Record) bool {
			if r.Scope.Kind != verdict.Layer || r.Generation.Name() == "" || r.Size < 0 || !r.Malicious && r.Signature != "" {
				t.Errorf("%+v", r)
			}
			return true
		})
	})
}

// FuzzContent damages the content behind checksums that are right.
func FuzzContent(f *testing.F) {
	good := content(f, 1, 4)
	length := binary.LittleEndian.Uint32(good[headerBytes+4:])
	f.Add(good[headerBytes+blockHeader:headerBytes+blockHeader+length], binary.LittleEndian.Uint32(good[headerBytes+20:]))
	f.Fuzz(func(t *testing.T, body []byte, dictionary uint32) {
		if len(body) > maxContent || int(dictionary) > len(body) {
			return
		}
		sums := newChecksummer()
		h := make([]byte, blockHeader)
		binary.LittleEndian.PutUint32(h, blockMagic)
		binary.LittleEndian.PutUint32(h[4:], uint32(len(body)))
		binary.LittleEndian.PutUint64(h[8:], headerBytes)
		binary.LittleEndian.PutUint32(h[16:], sums.of(body))
		binary.LittleEndian.PutUint32(h[20:], dictionary)
		binary.LittleEndian.PutUint32(h[24:], (uint32(len(body))-dictionary)/recordBytes)
		binary.LittleEndian.PutUint32(h[28:], sums.of(good[24:40], h[:28]))
		c, _ := readAll(append(append(bytes.Clone(good[:headerBytes]), h...), body...))
		if !bytes.Equal(body, good[headerBytes+blockHeader:headerBytes+blockHeader+length]) {
			count(t, c, 4) // what is left was written
		}
	})
}

// writeForEver keeps verdicts and says how many are on disk.
func writeForEver(dir string) error {
	c := newCache()
	s, err := Open(dir, c, eager())
	if err != nil {
		return err
	}
	c.Attach(s)
	for n := uint64(0); ; n += 500 {
		keep(c, n%50_000, n%50_000+500)
		if n%3 == 0 {
			c.Drop(layerOf(6))
			c.Acquire(layerOf(6), "sha256:6")
		}
		if n%7 == 0 {
			s.gaps.Store(true) // so that rewrites are killed as well
		}
		if err := s.Flush(context.Background()); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, min(n, 50_000-500)+500); err != nil {
			return err
		}
	}
}

// TestKilledWhileWriting kills a process that writes, at different moments: what
// it said to be on disk is there, and nothing is wrong.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		dir := t.TempDir()
		child := exec.CommandContext(t.Context(), exe)
		child.Env = append(os.Environ(), writerVariable+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		said := uint64(0)
		lines := bufio.NewScanner(out)
		for n := 0; n < 10+round*20 && lines.Scan(); n++ {
			if said, err = strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
		}
		_ = child.Wait() // it was killed
		s, c := open(t, dir, eager())
		n := count(t, c, 50_000)
		// One layer of seven is dropped again and again.
		if st := s.Status(); st.Restored == 0 || uint64(n) < 2*said*6/7-10 {
			t.Errorf("round %d: %d verdicts of %d files said to be on disk; %+v", round, n, said, st)
		}
		closeStore(t, s)
	}
}
