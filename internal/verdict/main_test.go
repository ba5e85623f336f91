package verdict

import (
	"encoding/binary"
	"testing"

	"go.uber.org/goleak"

	"github.com/assay-project/assay/scanner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keyOf returns the n-th of many keys that look like digests.
func keyOf(n uint64) FileKey {
	var k FileKey
	for i := range 3 {
		n = (n ^ n>>31) * 0x9e3779b97f4a7c15
		n ^= n >> 29
		binary.LittleEndian.PutUint64(k[8*i:], n+uint64(i))
	}
	return k
}

// clean and malicious return what Keep takes under the scanner's generation now.
func clean(s *Scanner, gen scanner.Generation) Kept {
	return Kept{Scanner: s, Current: gen, Verdict: scanner.CleanVerdict(gen)}
}

func malicious(s *Scanner, gen scanner.Generation, signature string) Kept {
	return Kept{Scanner: s, Current: gen, Verdict: scanner.MaliciousVerdict(signature, gen)}
}

// acquired returns a cache with these scopes in use.
func acquired(o Options, scopes ...Scope) *Cache {
	c := New(o)
	for _, s := range scopes {
		c.Acquire(s, s.String())
	}
	return c
}

// one looks up what one scanner said; ok says whether it is known.
func one(c *Cache, id Scope, key FileKey, s *Scanner, gen scanner.Generation) (v scanner.Verdict, ok bool) {
	got := make([]scanner.Verdict, 1)
	known := c.Lookup(0, id, key, []Want{{s, gen}}, got)
	return got[0], known == 1
}

// check fails unless the cache's sums agree with what is in it.
func check(tb testing.TB, c *Cache) {
	tb.Helper()
	var all int64
	for _, s := range c.scopes.list() {
		bytes := s.ownBytes()
		for i := range s.shards {
			shard := &s.shards[i]
			var inShard int64
			files := 0
			if t := shard.table.Load(); t != nil {
				inShard += t.bytes()
				for j := range t.slots {
					e := t.slots[j].Load()
					if e == nil {
						continue
					}
					inShard += e.bytes()
					files++
					if at, _ := t.find(c.hashKey(&e.key), &e.key); at != e {
						tb.Errorf("%v: an entry cannot be found by its key", s.id)
					}
				}
			}
			if files != shard.files || inShard != shard.bytes {
				tb.Errorf("%v: shard %d says %d files of %d bytes, and holds %d of %d", s.id, i, shard.files, shard.bytes, files, inShard)
			}
			bytes += inShard
		}
		if bytes != s.bytes.Load() {
			tb.Errorf("%v: says %d bytes, holds %d", s.id, s.bytes.Load(), bytes)
		}
		all += bytes
	}
	if all != c.bytes.Load() {
		tb.Errorf("the cache says %d bytes, and holds %d", c.bytes.Load(), all)
	}
}
