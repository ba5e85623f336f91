package tenant

import (
	"github.com/goccy/go-yaml/token"
)

// unsupported notes every use of a YAML feature that the configuration does
// without, and nesting that would only cost time. It reports whether there was
// any; such a file is not parsed.
func unsupported(tokens token.Tokens, p *problems) bool {
	before := len(p.found)
	var shape shape
	for i, t := range tokens {
		if remedy := refusedToken(t, i, len(tokens)); remedy != "" {
			p.add(place(t), remedy, "%q is a YAML feature that the configuration does not use", t.Value)
		}
		if t.Type == token.DirectiveType {
			break // it decides how to read the rest
		}
		if message := shape.step(t); message != "" {
			p.add(place(t), "see the configuration reference", "%s", message)
			break
		}
	}
	return len(p.found) > before
}

// refusedToken returns what to do instead of the i-th of n tokens, or "".
func refusedToken(t *token.Token, i, n int) string {
	switch t.Type {
	case token.AnchorType, token.AliasType:
		return `write the value out; text that begins with * or & needs quotes: "*-dev"`
	case token.MergeKeyType:
		return "write the keys out"
	case token.TagType:
		return "leave the tag out; text that begins with ! needs quotes"
	case token.DirectiveType:
		return "leave the directive out"
	case token.MappingKeyType:
		return "write key: value"
	case token.DocumentHeaderType:
		if i > 0 {
			return "keep one document in the file"
		}
	case token.DocumentEndType:
		if i < n-1 {
			return "keep one document in the file"
		}
	default:
	}
	return ""
}

// A shape follows the nesting of a token stream.
type shape struct {
	flow   int     // open brackets
	blocks []block // open block collections, outermost first
}

// A block is an open block collection.
type block struct{ column, keys int }

// step takes the next token and says what is too deep or too much, or "".
func (s *shape) step(t *token.Token) string {
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		s.flow++
	case token.MappingEndType, token.SequenceEndType:
		s.flow--
	case token.SequenceEntryType:
		s.open(place(t).column)
	case token.MappingValueType:
		if s.flow == 0 && t.Prev != nil {
			s.open(place(t.Prev).column).keys++
		}
	default:
	}
	switch {
	case s.flow > maxDepth || len(s.blocks) > maxDepth:
		return "nested far deeper than any configuration"
	case len(s.blocks) > 0 && s.blocks[len(s.blocks)-1].keys > maxKeys:
		return "more keys in one mapping than there are settings"
	}
	return ""
}

// open returns the block collection at column after closing those deeper.
func (s *shape) open(column int) *block {
	for len(s.blocks) > 0 && s.blocks[len(s.blocks)-1].column > column {
		s.blocks = s.blocks[:len(s.blocks)-1]
	}
	if len(s.blocks) == 0 || s.blocks[len(s.blocks)-1].column < column {
		s.blocks = append(s.blocks, block{column: column})
	}
	return &s.blocks[len(s.blocks)-1]
}
