package hashlist

import (
	"context"
	"crypto/fips140"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An algorithm is one of the digests.
type algorithm uint8

const (
	md5Digest algorithm = iota
	sha1Digest
	sha256Digest
	algorithms // their number
)

// String returns the algorithm's usual name.
func (a algorithm) String() string {
	switch a {
	case md5Digest:
		return "MD5"
	case sha1Digest:
		return "SHA-1"
	default:
		return "SHA-256"
	}
}

// anySize is the size of an entry that holds for files of every size.
const anySize int64 = -1

// An entry is one line of a list.
type entry struct {
	algorithm algorithm
	digest    digest
	size      int64 // bytes, or anySize
	name      string
}

// A digest is a digest of any algorithm, the rest of it zero.
type digest [32]byte

// A format is a way to write an entry.
type format struct {
	name  string
	parse func(line string) (entry, *ParseError)
}

// formatOf returns the format of a list by its extension.
func formatOf(path string) format {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".hsb", ".hdb":
		return format{name: "clamav", parse: parseClamAV}
	default:
		return format{name: "plain", parse: parsePlain}
	}
}

// parse calls add for each entry of text, which is the content of the list path.
func parse(ctx context.Context, path, text string, add func(entry)) error {
	f := formatOf(path)
	number := 0
	for line := range strings.Lines(text) {
		if number++; number%10_000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := f.parse(line)
		if err == nil && fips140.Enforced() && e.algorithm != sha256Digest {
			err = bad("list SHA-256 digests instead, or run without GODEBUG=fips140=only",
				"%s is not available in FIPS 140-only mode", e.algorithm)
		}
		if err != nil {
			err.File, err.Line = path, number
			return err
		}
		add(e)
	}
	return nil
}

// bad returns an error whose place is filled in by parse.
func bad(remedy, problem string, args ...any) *ParseError {
	return &ParseError{Problem: fmt.Sprintf(problem, args...), Remedy: remedy}
}

// parsePlain parses what sha256sum writes: a digest, then a space, then a space
// or a star, then a name. A backslash in front says that the name is escaped,
// which is no matter for a signature.
func parsePlain(line string) (entry, *ParseError) {
	sum, name := strings.TrimPrefix(line, `\`), ""
	if end := strings.IndexAny(sum, " \t"); end >= 0 {
		sum, name = sum[:end], strings.TrimLeft(sum[end:], " \t")
	}
	e, err := parseDigest(sum)
	if err != nil {
		return entry{}, err
	}
	if e.name, err = parseName(strings.TrimPrefix(name, "*")); err != nil {
		return entry{}, err
	}
	if e.name == "" {
		e.name = "Listed." + e.algorithm.String() + "." + strings.ToLower(sum[:16])
	}
	e.size = anySize
	return e, nil
}

// parseClamAV parses hash:size:name[:minFL[:maxFL]].
func parseClamAV(line string) (entry, *ParseError) {
	fields := strings.Split(line, ":")
	if len(fields) < 3 || len(fields) > 5 {
		return entry{}, bad("write digest:size:name, or give the list another extension if it is a plain one",
			"%d fields where 3 to 5 are expected", len(fields))
	}
	e, err := parseDigest(fields[0])
	if err != nil {
		return entry{}, err
	}
	if e.size, err = parseSize(fields[1]); err != nil {
		return entry{}, err
	}
	if e.name, err = parseName(fields[2]); err != nil {
		return entry{}, err
	}
	if e.name == "" {
		return entry{}, bad("write the signature's name into the third field", "the name is empty")
	}
	for _, level := range fields[3:] {
		if _, err := strconv.ParseUint(level, 10, 32); err != nil {
			return entry{}, bad("write a whole number, or leave the field out", "functionality level %s is not a number", quote(level))
		}
	}
	return e, nil
}

// parseDigest returns an entry with its digest and algorithm filled in.
func parseDigest(sum string) (e entry, err *ParseError) {
	const remedy = "write 32 (MD5), 40 (SHA-1) or 64 (SHA-256) hexadecimal digits"
	switch len(sum) {
	case 2 * md5.Size:
		e.algorithm = md5Digest
	case 2 * sha1.Size:
		e.algorithm = sha1Digest
	case 2 * sha256.Size:
		e.algorithm = sha256Digest
	default:
		return entry{}, bad(remedy, "digest %s has %d characters", quote(sum), len(sum))
	}
	if _, err := hex.Decode(e.digest[:], []byte(sum)); err != nil {
		return entry{}, bad(remedy, "digest %s is not hexadecimal", quote(sum))
	}
	return e, nil
}

func parseSize(size string) (int64, *ParseError) {
	if size == "*" {
		return anySize, nil
	}
	n, err := strconv.ParseUint(size, 10, 63)
	if err != nil {
		return 0, bad("write the file's length in bytes, or * for any", "size %s is not a number", quote(size))
	}
	return int64(n), nil
}

// maxName is the longest name in bytes; it goes into records as it is.
const maxName = 1024

func parseName(name string) (string, *ParseError) {
	if len(name) > maxName {
		return "", bad("shorten it", "the name has %d bytes where %d are allowed", len(name), maxName)
	}
	notPrintable := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(name) || strings.ContainsFunc(name, notPrintable) {
		return "", bad("write it in printable UTF-8", "the name %s has characters that cannot be shown", quote(name))
	}
	return strings.Clone(name), nil // The list's text need not stay in memory for it.
}

// quote shows at most the beginning of a field that may be anything.
func quote(field string) string {
	const most = 80
	if len(field) > most {
		return strconv.QuoteToASCII(field[:most]) + "..."
	}
	return strconv.QuoteToASCII(field)
}
