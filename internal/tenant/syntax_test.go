package tenant

import (
	"testing"

	"github.com/goccy/go-yaml/token"
)

// TestPlace: no token of the parser, however odd, leads outside the file.
func TestPlace(t *testing.T) {
	t.Parallel()
	for want, tokens := range map[position][]*token.Token{
		{1, 1}: {nil, {}, {Position: &token.Position{}}},
		{7, 1}: {{Position: &token.Position{Line: 7}}},
		{7, 8}: {{Position: &token.Position{Line: 7, Column: 8}}},
	} {
		for _, tk := range tokens {
			if got := place(tk); got != want {
				t.Errorf("%+v stands at %v, want %v", tk, got, want)
			}
		}
	}
}
