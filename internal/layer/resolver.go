package layer

import (
	"context"
	"errors"
	"strings"
)

// A Resolver knows where a runtime keeps layers, and what they are called. It reads
// the runtime's files or asks the runtime, so it can block.
type Resolver interface {
	// Digests returns for each of the directories, which are the lower directories
	// of one overlay, topmost first, absolute and without symbolic links, the digest
	// of the image layer that was unpacked there ("sha256:…", its diff id), or "" for
	// those it does not know and those that are no image layer. An error says that
	// it should have known.
	Digests(ctx context.Context, directories []string) ([]string, error)
}

// maxStored bounds the layers of one storage that are read.
const maxStored = 200_000

// errTooMany says that a storage has more layers than maxStored.
var errTooMany = errors.New("more layers than can be")

// isDigest reports whether s is a digest as the OCI image specification has them,
// of one of the registered algorithms.
func isDigest(s string) bool {
	algorithm, digits, _ := strings.Cut(s, ":")
	switch algorithm {
	case "sha256":
		return len(digits) == 64 && isHex(digits)
	case "sha512":
		return len(digits) == 128 && isHex(digits)
	}
	return false
}

// isHex reports whether s is of lower-case hexadecimal digits.
func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// layerID returns the id of a layer from a directory ROOT/store/ID/diff, and ROOT.
func layerID(directory, store string) (root, id string, ok bool) {
	rest, ok := strings.CutSuffix(directory, "/diff")
	if !ok {
		return "", "", false
	}
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return "", "", false
	}
	root, ok = strings.CutSuffix(rest[:at], "/"+store)
	return root, rest[at+1:], ok
}
