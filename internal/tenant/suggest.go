package tenant

import (
	"fmt"
	"strings"

	"github.com/assay-project/assay/internal/spelling"
)

// suggest returns the remedy for a word that is none of known: the nearest of
// them if one is near, and all of them.
func suggest(word string, known []string) string {
	all := "known: " + strings.Join(known, ", ")
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("did you mean %q? %s", near, all)
	}
	return all
}

// nearest returns the known word that differs from word in the fewest letters,
// or "" if none is near. Case does not count.
func nearest(word string, known []string) string {
	best, fewest := "", max(2, len(word)/3+1)
	for _, k := range known {
		if d := spelling.Distance(strings.ToLower(word), strings.ToLower(k)); d < fewest {
			best, fewest = k, d
		}
	}
	return best
}
