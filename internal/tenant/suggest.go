package tenant

import (
	"fmt"
	"strings"
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
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < fewest {
			best, fewest = k, d
		}
	}
	return best
}

// distance returns how many letters must be inserted, removed or replaced to
// turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
