package hashlist_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// BenchmarkScan scans clean files against lists of different kinds. "sized" has
// entries of another size only, so that nothing need be read.
func BenchmarkScan(b *testing.B) {
	lists := []struct{ name, text string }{
		{"sized", fmt.Sprintf("%x:7:Evil\n", sha256.Sum256(nil))},
		{"md5", fmt.Sprintf("%x:*:Evil\n", md5.Sum([]byte("x")))},
		{"sha1", fmt.Sprintf("%x:*:Evil\n", sha1.Sum([]byte("x")))},
		{"sha256", fmt.Sprintf("%x:*:Evil\n", sha256.Sum256([]byte("x")))},
	}
	all := lists[1].text + lists[2].text + lists[3].text
	lists = append(lists, struct{ name, text string }{"all", all})
	for _, list := range lists {
		for _, size := range []int{20 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKB", list.name, size>>10), func(b *testing.B) {
				s := open(b, write(b, b.TempDir(), "a.hsb", "%s", list.text))
				f := scannertest.FileOf(b, make([]byte, size))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if v := s.Scan(b.Context(), f); v.Outcome != scanner.Clean {
						b.Fatalf("%+v", v)
					}
				}
			})
		}
	}
}
