package spelling

import "testing"

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"mode", "mode", 0},
		{"mod", "mode", 1},
		{"scaners", "scanners", 1},
		{"kitten", "sitting", 3},
		{"ab", "ba", 2},
		{"flaw", "lawn", 2},
	} {
		if got := Distance(tc.a, tc.b); got != tc.want {
			t.Errorf("Distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if there, back := Distance(tc.a, tc.b), Distance(tc.b, tc.a); there != back {
			t.Errorf("%q and %q are %d apart, and %d the other way", tc.a, tc.b, there, back)
		}
	}
}
