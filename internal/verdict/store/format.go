package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/assay-project/assay/internal/verdict"
)

// The format, version 1. Numbers are little-endian, checksums CRC-32C.
//
//	file header  magic [16], version u32, checksum of these u32   (the same in all versions)
//	             file id [16], checksum of all before u32, zeros up to 512 bytes
//	block        at a multiple of 512 bytes: header, dictionary, records, zeros
//	  header     magic u32, length of dictionary and records u32, place in the file u64,
//	             checksum of dictionary and records u32, length of the dictionary u32,
//	             number of records u32, checksum of the file id and all before u32
//	  dictionary number u16 of layers, each: id [32], label; number u16 of generations, each:
//	             scanner, configuration, generation; number u16 of signatures. Text: length u16, bytes
//	  record     operation u8, zero u8, layer u16, generation u16, signature u16, file size u64,
//	             key [24], checksum of words and record u32
const (
	version     = 1
	align       = 512
	headerBytes = align
	blockHeader = 32
	recordBytes = 44
	blockMagic  = 0x31425641
	// maxContent bounds a block's dictionary and records, in bytes: what damage to
	// one bit can cost.
	maxContent = 128 << 10
	// maxText is the longest text of a dictionary, in bytes.
	maxText = 4096
	// maxWords is the most of a kind in one dictionary.
	maxWords = 1<<16 - 1
)

// fileMagic begins every file; the line ends show what a text transfer broke.
const fileMagic = "assay-verdicts\r\n"

// The operations of a record.
const (
	opClean     = 1
	opMalicious = 2
	opDrop      = 3 // of a layer; generation and file mean nothing
)

// A fileID makes a block of one file worthless in any other.
type fileID [16]byte

// A checksummer computes the format's checksums.
type checksummer struct{ table *crc32.Table }

func newChecksummer() checksummer { return checksummer{crc32.MakeTable(crc32.Castagnoli)} }

func (c checksummer) of(parts ...[]byte) uint32 {
	var sum uint32
	for _, p := range parts {
		sum = crc32.Update(sum, c.table, p)
	}
	return sum
}

// encodeHeader returns a file's header.
func encodeHeader(c checksummer, id fileID) []byte {
	h := append(make([]byte, 0, headerBytes), fileMagic...)
	h = binary.LittleEndian.AppendUint32(h, version)
	h = binary.LittleEndian.AppendUint32(h, c.of(h))
	h = append(h, id[:]...)
	h = binary.LittleEndian.AppendUint32(h, c.of(h))
	return h[:headerBytes]
}

// decodeHeader returns the file's id, or ErrCorrupt or ErrNewerVersion.
func decodeHeader(c checksummer, h []byte) (id fileID, err error) {
	if len(h) < headerBytes || !bytes.HasPrefix(h, []byte(fileMagic)) || c.of(h[:20]) != binary.LittleEndian.Uint32(h[20:]) {
		return id, fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(h[16:]); v > version {
		return id, fmt.Errorf("%w (version %d, this is %d)", ErrNewerVersion, v, version)
	} else if v != version {
		return id, fmt.Errorf("%w: there is no version %d", ErrCorrupt, v)
	}
	if c.of(h[:40]) != binary.LittleEndian.Uint32(h[40:]) {
		return id, fmt.Errorf("%w: its header does not verify", ErrCorrupt)
	}
	copy(id[:], h[24:])
	return id, nil
}

// An item is what a journal is told: a record, or the drop of its layer.
type item struct {
	record verdict.Record
	drop   bool
}

// An encoder collects items for one block.
type encoder struct {
	sums       checksummer
	scopes     map[verdict.Scope]uint16
	gens       map[verdict.Generation]uint16
	signatures map[string]uint16
	words      [3][]byte // the dictionary's three lists, encoded
	scopeIDs   [][]byte
	genWords   [][]byte
	records    []byte
	n          uint32
}

func newEncoder() *encoder {
	e := &encoder{sums: newChecksummer()}
	e.reset()
	return e
}

func (e *encoder) reset() {
	e.scopes = make(map[verdict.Scope]uint16)
	e.gens = make(map[verdict.Generation]uint16)
	e.signatures = make(map[string]uint16)
	for i := range e.words {
		e.words[i] = e.words[i][:0]
	}
	e.scopeIDs, e.genWords, e.records, e.n = e.scopeIDs[:0], e.genWords[:0], e.records[:0], 0
}

// fits reports whether an item's texts are short enough for the format.
func fits(it *item) bool {
	r := &it.record
	if len(r.Label) > maxText || len(r.Signature) > maxText {
		return false
	}
	if it.drop {
		return true
	}
	s := r.Generation.Scanner()
	return len(s.Name()) <= maxText && len(s.Config()) <= maxText && len(r.Generation.Name()) <= maxText
}

// add puts an item in that fits the format, or reports that the block is full.
func (e *encoder) add(it *item) bool {
	const most = 6 + recordBytes + 32 + 5*(2+maxText) // that one item can add
	if len(e.words[0])+len(e.words[1])+len(e.words[2])+len(e.records)+most > maxContent ||
		max(len(e.scopes), len(e.gens), len(e.signatures)) == maxWords {
		return false
	}
	r := &it.record
	var record [recordBytes]byte
	var genWords []byte
	record[0] = opDrop
	scope := e.scope(r)
	binary.LittleEndian.PutUint16(record[2:], scope)
	if !it.drop {
		record[0] = opClean
		gen := e.generation(r.Generation)
		genWords = e.genWords[gen]
		binary.LittleEndian.PutUint16(record[4:], gen)
		if r.Malicious {
			record[0] = opMalicious
			binary.LittleEndian.PutUint16(record[6:], e.signature(r.Signature))
		}
		binary.LittleEndian.PutUint64(record[8:], uint64(r.Size))
		copy(record[16:], r.Key[:])
	}
	sum := e.sums.of(e.scopeIDs[scope], genWords, []byte(r.Signature), record[:recordBytes-4])
	binary.LittleEndian.PutUint32(record[recordBytes-4:], sum)
	e.records = append(e.records, record[:]...)
	e.n++
	return true
}

func (e *encoder) scope(r *verdict.Record) uint16 {
	i, known := e.scopes[r.Scope]
	if !known {
		i = uint16(len(e.scopes))
		e.scopes[r.Scope] = i
		e.words[0] = append(e.words[0], r.Scope.ID[:]...)
		e.words[0] = appendText(e.words[0], r.Label)
		e.scopeIDs = append(e.scopeIDs, r.Scope.ID[:])
	}
	return i
}

func (e *encoder) generation(g verdict.Generation) uint16 {
	i, known := e.gens[g]
	if !known {
		i = uint16(len(e.gens))
		e.gens[g] = i
		words := appendText(nil, g.Scanner().Name())
		words = appendText(words, g.Scanner().Config())
		words = appendText(words, string(g.Name()))
		e.words[1] = append(e.words[1], words...)
		e.genWords = append(e.genWords, words)
	}
	return i
}

func (e *encoder) signature(s string) uint16 {
	i, known := e.signatures[s]
	if !known {
		i = uint16(len(e.signatures))
		e.signatures[s] = i
		e.words[2] = appendText(e.words[2], s)
	}
	return i
}

func appendText(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(s))), s...)
}

// appendBlock appends the block for this place of the file to b, up to the next
// multiple of align, and begins the next block. Without items it appends nothing.
func (e *encoder) appendBlock(b []byte, id fileID, place int64) []byte {
	if e.n == 0 {
		return b
	}
	start := len(b)
	b = append(b, make([]byte, blockHeader)...)
	for i, n := range []int{len(e.scopes), len(e.gens), len(e.signatures)} {
		b = binary.LittleEndian.AppendUint16(b, uint16(n))
		b = append(b, e.words[i]...)
	}
	dictionary := len(b) - start - blockHeader
	b = append(b, e.records...)
	h, content := b[start:start+blockHeader], b[start+blockHeader:]
	binary.LittleEndian.PutUint32(h, blockMagic)
	binary.LittleEndian.PutUint32(h[4:], uint32(len(content)))
	binary.LittleEndian.PutUint64(h[8:], uint64(place))
	binary.LittleEndian.PutUint32(h[16:], e.sums.of(content))
	binary.LittleEndian.PutUint32(h[20:], uint32(dictionary))
	binary.LittleEndian.PutUint32(h[24:], e.n)
	binary.LittleEndian.PutUint32(h[28:], e.sums.of(id[:], h[:28]))
	if over := (len(b) - start) % align; over > 0 {
		b = append(b, make([]byte, align-over)...)
	}
	e.reset()
	return b
}
