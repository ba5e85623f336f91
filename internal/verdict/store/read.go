package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/scanner"
)

// A reading says what became of a file's content.
type reading struct {
	records int
	end     int64 // of the last block that verified, in bytes
	bad     int64 // bytes before it that did not verify
	summed  int64 // bytes of content whose checksum was computed: what reading cost
}

// A reader reads the blocks of a file into a cache.
type reader struct {
	cache *verdict.Cache
	sums  checksummer
	id    fileID
	got   reading
	put   func(*item) // lent what was read, in the file's order
}

// read reads everything after the file's header that verifies. It returns the
// error of the file, if there is one; what was read before it counts.
func (r *reader) read(file io.ReaderAt, size int64) error {
	in := bufio.NewReaderSize(io.NewSectionReader(file, headerBytes, max(0, size-headerBytes)), blockHeader+maxContent+align)
	r.got = reading{end: headerBytes}
	// Content that does not verify is looked at again in steps of align: headers
	// that do could make that cost far more than the file's size.
	for place := int64(headerBytes); r.got.summed <= 2*size; {
		length, err := r.block(in, place)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil && !errors.Is(err, errBlock) {
			return err
		}
		step := int64(align)
		if err == nil {
			step = (blockHeader + int64(length) + align - 1) / align * align
			r.got.bad += place - r.got.end
			r.got.end = place + step
		}
		if _, err := in.Discard(int(step)); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		place += step
	}
	return nil
}

// errBlock means that there is no block here that verifies.
var errBlock = errors.New("no block")

// block reads the block at this place and returns the length of its content.
func (r *reader) block(in *bufio.Reader, place int64) (length int, err error) {
	h, err := in.Peek(blockHeader)
	if err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint32(h) != blockMagic || binary.LittleEndian.Uint64(h[8:]) != uint64(place) ||
		r.sums.of(r.id[:], h[:28]) != binary.LittleEndian.Uint32(h[28:]) {
		return 0, errBlock
	}
	content, dictionary := binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[20:])
	n, sum := binary.LittleEndian.Uint32(h[24:]), binary.LittleEndian.Uint32(h[16:])
	if content > maxContent || uint64(content) != uint64(dictionary)+recordBytes*uint64(n) {
		return 0, errBlock
	}
	b, err := in.Peek(blockHeader + int(content))
	if errors.Is(err, io.EOF) {
		return 0, errBlock // cut short; something later may still verify
	} else if err != nil {
		return 0, err
	}
	r.got.summed += int64(content)
	if b = b[blockHeader:]; r.sums.of(b) != sum {
		return 0, errBlock
	}
	d, ok := r.dictionary(b[:dictionary])
	if !ok {
		return 0, errBlock
	}
	var it item
	for records := b[dictionary:]; len(records) > 0; records = records[recordBytes:] {
		if !d.item(records[:recordBytes], &it) {
			return 0, errBlock // what came before it has verified
		}
		r.put(&it)
		r.got.records++
	}
	return int(content), nil
}

// A dictionary is what a block's records refer to.
type dictionary struct {
	sums       checksummer
	scopes     []verdict.Scope
	labels     []string
	gens       []verdict.Generation
	genWords   [][]byte
	signatures []string
	// The checksum over a layer and a generation is that of the record before,
	// mostly.
	last    [2]uint16
	lastSum uint32
	lastSet bool
}

// dictionary decodes a block's dictionary, which must fill b.
func (r *reader) dictionary(b []byte) (*dictionary, bool) {
	d := &dictionary{sums: r.sums}
	t := text{rest: b}
	for range t.number() {
		d.scopes = append(d.scopes, verdict.Scope{Kind: verdict.Layer, ID: t.id()})
		d.labels = append(d.labels, t.next())
	}
	for range t.number() {
		before := t.rest
		name, config, gen := t.next(), t.next(), t.next()
		if t.broken || gen == "" {
			return nil, false
		}
		d.gens = append(d.gens, r.cache.Scanner(name, config).Generation(scanner.Generation(gen)))
		d.genWords = append(d.genWords, before[:len(before)-len(t.rest)])
	}
	for range t.number() {
		d.signatures = append(d.signatures, t.next())
	}
	return d, !t.broken && len(t.rest) == 0
}

// item decodes a record into it, and reports whether it verifies.
func (d *dictionary) item(b []byte, it *item) bool {
	scope, gen, signature := binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:])
	op, size := b[0], int64(binary.LittleEndian.Uint64(b[8:]))
	if int(scope) >= len(d.scopes) || size < 0 {
		return false
	}
	it.drop = false
	it.record = verdict.Record{Scope: d.scopes[scope], Label: d.labels[scope]}
	var sum uint32
	switch {
	case op == opDrop:
		it.drop = true
		sum = d.sums.of(d.scopes[scope].ID[:])
	case op != opClean && op != opMalicious, int(gen) >= len(d.gens), op == opMalicious && int(signature) >= len(d.signatures):
		return false
	default:
		it.record.Generation, it.record.Size, it.record.Key = d.gens[gen], size, verdict.FileKey(b[16:40])
		sum = d.wordsSum(scope, gen)
		if op == opMalicious {
			it.record.Malicious, it.record.Signature = true, d.signatures[signature]
			sum = crc32.Update(sum, d.sums.table, []byte(it.record.Signature))
		}
	}
	return crc32.Update(sum, d.sums.table, b[:40]) == binary.LittleEndian.Uint32(b[40:])
}

// wordsSum returns the checksum over a layer's id and a generation's words.
func (d *dictionary) wordsSum(scope, gen uint16) uint32 {
	if !d.lastSet || d.last != [2]uint16{scope, gen} {
		d.last, d.lastSet = [2]uint16{scope, gen}, true
		d.lastSum = d.sums.of(d.scopes[scope].ID[:], d.genWords[gen])
	}
	return d.lastSum
}

// A text decodes a dictionary's lists. Once broken, it returns nothing.
type text struct {
	rest   []byte
	broken bool
}

func (t *text) take(n int) []byte {
	if t.broken || n > len(t.rest) {
		t.broken = true
		return nil
	}
	taken := t.rest[:n]
	t.rest = t.rest[n:]
	return taken
}

func (t *text) number() int {
	if b := t.take(2); b != nil {
		return int(binary.LittleEndian.Uint16(b))
	}
	return 0
}

func (t *text) id() (id [32]byte) {
	copy(id[:], t.take(len(id)))
	return id
}

func (t *text) next() string {
	n := t.number()
	if n > maxText {
		t.broken = true
	}
	return string(t.take(n))
}
