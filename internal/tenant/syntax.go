package tenant

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of what is handed to the YAML parser, whose work grows with the square
// of the nesting and of the keys in one block mapping. The configuration needs
// 6 levels and 19 keys, and labels.
const (
	maxBytes = 1 << 20
	maxDepth = 32
	maxKeys  = 64
)

// A kind is what a YAML node is, as far as the configuration cares.
type kind uint8

const (
	kindOther    kind = iota // true, false, fractions, infinities
	kindNull                 // nothing, or null
	kindText                 // text, quoted or plain
	kindInteger              // a whole number
	kindSequence             // a list
	kindMapping              // keys and values
)

// String names the kind as in "found a list".
func (k kind) String() string {
	switch k {
	case kindNull:
		return "nothing"
	case kindText:
		return "text"
	case kindInteger:
		return "a number"
	case kindSequence:
		return "a list"
	case kindMapping:
		return "a mapping"
	case kindOther:
		return "something else"
	}
	return "something else"
}

// A node is a YAML value and where it stands.
type node struct {
	at     position
	kind   kind
	text   string  // a scalar as written, without its quotes
	items  []*node // of a sequence
	fields []field // of a mapping, in file order, duplicates included
}

// A field is a key of a mapping with its value.
type field struct {
	at    position // of the key
	name  string
	value *node
}

// parseYAML turns data into a tree. It returns nil after noting what keeps it
// from doing so.
func parseYAML(data []byte, p *problems) *node {
	start := position{1, 1}
	if len(data) > maxBytes {
		p.add(start, "split the hosts or shorten the file", "the file is larger than %d bytes", maxBytes)
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors leave
	if at, ok := invalidUTF8(data); ok {
		p.add(at, "save the file as UTF-8", "not UTF-8 text")
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if unsupported(tokens, p) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // duplicates are reported by mapping
	if err != nil {
		syntaxProblem(err, p)
		return nil
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		p.add(start, "write {} if every default is wanted", "the file is empty")
		return nil
	}
	return convert(file.Docs[0].Body)
}

// invalidUTF8 returns the place of the first byte that is not UTF-8.
func invalidUTF8(data []byte) (position, bool) {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			line := data[bytes.LastIndexByte(data[:i], '\n')+1 : i]
			return position{1 + bytes.Count(data[:i], []byte("\n")), 1 + utf8.RuneCount(line)}, true
		}
		i += n
	}
	return position{}, false
}

// syntaxProblem notes the parser's error at its place.
func syntaxProblem(err error, p *problems) {
	const remedy = "check the indentation, quotes and brackets here and in the line above; " +
		"a mapping behind a key needs braces, as in decide: {quorum: 2}"
	var e yaml.Error
	if !errors.As(err, &e) {
		p.add(position{1, 1}, remedy, "not valid YAML: %v", err)
		return
	}
	p.add(place(e.GetToken()), remedy, "not valid YAML: %s", e.GetMessage())
}

// place returns where a token stands. The parser gives some tokens of its own
// making no place, or column 0.
func place(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{max(1, t.Position.Line), max(1, t.Position.Column)}
}

// convert turns the parser's tree into nodes.
func convert(n ast.Node) *node {
	out := &node{at: place(n.GetToken())}
	switch n := n.(type) {
	case *ast.MappingNode:
		out.kind = kindMapping
		for _, v := range n.Values {
			out.fields = append(out.fields, convertField(v))
		}
		if !n.IsFlowStyle && len(out.fields) > 0 {
			out.at = out.fields[0].at // the token is the first colon
		}
	case *ast.SequenceNode:
		out.kind = kindSequence
		for _, v := range n.Values {
			out.items = append(out.items, convert(v))
		}
	case *ast.StringNode:
		out.kind, out.text = kindText, n.Value
	case *ast.LiteralNode:
		out.kind, out.text = kindText, n.Value.Value
	case *ast.IntegerNode:
		out.kind, out.text = kindInteger, n.Token.Value
	case *ast.NullNode:
		out.kind = kindNull
	default:
		out.kind, out.text = kindOther, n.GetToken().Value
	}
	return out
}

func convertField(v *ast.MappingValueNode) field {
	return field{at: place(v.Key.GetToken()), name: v.Key.GetToken().Value, value: convert(v.Value)}
}
