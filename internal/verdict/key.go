package verdict

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// A FileKey names the content of a file within a [Scope]: the opaque identity
// that the caller made of it, compared for equality only. It should be (part of)
// a cryptographic digest, because a tenant chooses much of what goes into it.
type FileKey [24]byte

// A Kind says what a scope is.
type Kind uint8

// The kinds of a scope. The zero Kind is none: nothing is kept for it.
const (
	Layer     Kind = iota + 1 // pristine files of an image layer; shared and stored
	Container                 // everything else that one container sees; never shared or stored
)

// String returns "layer", "container" or "invalid".
func (k Kind) String() string {
	switch k {
	case Layer:
		return "layer"
	case Container:
		return "container"
	}
	return "invalid"
}

// A Scope names those for whom a verdict holds. It is compared for equality only.
type Scope struct {
	Kind Kind
	ID   [32]byte
}

// LayerScope returns the scope of an image layer. The names are what tells this
// unpacked layer from every other, such as its digest and the identity of its
// directory: a layer that is removed and unpacked again is another one.
func LayerScope(names ...string) Scope { return scopeOf(Layer, names) }

// ContainerScope returns the scope of the container with this id.
func ContainerScope(id string) Scope { return scopeOf(Container, []string{id}) }

// scopeOf hashes the names, each with its length, so that no two lists are alike.
func scopeOf(k Kind, names []string) Scope {
	sum := sha256.New()
	for _, name := range names {
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(len(name)))
		sum.Write(length[:])
		sum.Write([]byte(name))
	}
	return Scope{Kind: k, ID: [32]byte(sum.Sum(nil))}
}

// String names the scope for people: its kind and the start of its id.
func (s Scope) String() string { return s.Kind.String() + ":" + hex.EncodeToString(s.ID[:8]) }
