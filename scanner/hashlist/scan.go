package hashlist

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// The EICAR test file begins with 68 bytes of this SHA-256, so that the text
// itself stands nowhere in the program. Only white space may follow, up to 128
// bytes in all (https://www.eicar.org/download-anti-malware-testfile/).
const (
	eicarName   = "Eicar-Test-Signature"
	eicarDigest = "275a021bbfb6489e54d471899f7db9d1663fc695ec2fe2a2c4538aabf651fd0f"
	eicarSize   = 68
	eicarMost   = 128
	eicarSpace  = " \t\r\n\x1a"
)

// chunkSize is how many bytes are read and digested between two looks at the context.
const chunkSize = 128 << 10

// Scan compares f's digests with the lists that are in force when it begins, in
// one pass, and computes only those that a file of this size could be listed by.
// A file whose length is not the same from beginning to end gives an Error that
// wraps [scanner.ErrRead], unless what was read is listed.
func (s *Scanner) Scan(ctx context.Context, f *scanner.File) scanner.Verdict {
	known := s.snapshot.Load()
	if err := s.interrupted(ctx); err != nil {
		return scanner.ErrorVerdict(err)
	}
	size, regular, err := stat(f.FD)
	if err != nil {
		return scanner.ErrorVerdict(err)
	}
	if !regular {
		return scanner.UnscannableVerdict(scanner.ReasonFormat, known.generation)
	}
	j := s.jobs.Get().(*job) //nolint:errcheck // The pool has nothing else.
	defer s.jobs.Put(j)
	j.prepare(known, size)
	read, err := j.read(func() error { return s.interrupted(ctx) }, f.FD)
	if err != nil {
		return scanner.ErrorVerdict(err)
	}
	after, _, err := stat(f.FD)
	whole := err == nil && read == size && after == size
	if name, found := j.find(known, read); found {
		v := scanner.MaliciousVerdict(name, known.generation)
		v.Mark = v.Mark && whole
		return v
	}
	if !whole {
		return scanner.ErrorVerdict(fmt.Errorf("%w: it changed while it was scanned, or its filesystem does not tell lengths: it had %d bytes, %d were read", scanner.ErrRead, size, read))
	}
	return scanner.CleanVerdict(known.generation)
}

// ScanInstant knows that a file is clean if nothing of its size is listed. It
// believes f.Size, which must be fresh; to an empty file, or one whose size
// nobody has filled in, it has no answer.
func (s *Scanner) ScanInstant(f *scanner.File) (v scanner.Verdict, known bool) {
	snap := s.snapshot.Load()
	if f.Size <= 0 || mayBeEICAR(f.Size) || s.isClosed() {
		return scanner.Verdict{}, false
	}
	for a := range snap.lists {
		if snap.lists[a].needed(f.Size) {
			return scanner.Verdict{}, false
		}
	}
	return scanner.CleanVerdict(snap.generation), true
}

// interrupted returns why a scan has to end before its time, or nil.
func (s *Scanner) interrupted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("hash list scan: %w", err)
	}
	if s.isClosed() {
		return errClosed
	}
	return nil
}

// A job is the memory of one scan.
type job struct {
	size   int64 // bytes, when the scan began
	eicar  bool  // the file may be the EICAR test file
	needed [algorithms]bool
	sums   [algorithms]hash.Hash
	small  []byte // what was read, if eicar
	chunk  [chunkSize]byte
}

func newJob() any {
	j := &job{}
	j.sums[md5Digest], j.sums[sha1Digest], j.sums[sha256Digest] = md5.New(), sha1.New(), sha256.New()
	return j
}

// prepare makes the job ready for a file of size bytes.
func (j *job) prepare(known *snapshot, size int64) {
	j.size, j.eicar, j.small = size, mayBeEICAR(size), j.small[:0]
	for a := range known.lists {
		j.sums[a].Reset()
		j.needed[a] = known.lists[a].needed(size)
	}
}

// read digests the file and returns where it ends, or some place beyond size if
// it has grown. If no digest is needed it only looks at the end.
func (j *job) read(interrupted func() error, fd int) (end int64, err error) {
	if !j.eicar && j.needed == ([algorithms]bool{}) {
		end = max(0, j.size-1)
	}
	for end <= j.size {
		if err := interrupted(); err != nil {
			return end, err
		}
		n, err := pread(fd, j.chunk[:], end)
		if err != nil {
			return end, err
		}
		if n == 0 {
			break
		}
		j.digest(j.chunk[:n])
		end += int64(n)
	}
	return end, nil
}

func (j *job) digest(chunk []byte) {
	if j.eicar {
		j.small = append(j.small, chunk...)
	}
	for a, needed := range j.needed {
		if needed {
			j.sums[a].Write(chunk) // A hash never fails.
		}
	}
}

// find returns the name of what was read, if it is known, of that many bytes.
func (j *job) find(known *snapshot, size int64) (name string, found bool) {
	if j.eicar && isEICAR(j.small) {
		return eicarName, true
	}
	for a, needed := range j.needed {
		if !needed {
			continue
		}
		var d digest
		j.sums[a].Sum(d[:0])
		if name, found := known.lists[a].lookup(d, size); found {
			return name, true
		}
	}
	return "", false
}

func mayBeEICAR(size int64) bool { return eicarSize <= size && size <= eicarMost }

// isEICAR reports whether content is the EICAR test file.
func isEICAR(content []byte) bool {
	if !mayBeEICAR(int64(len(content))) {
		return false
	}
	sum := sha256.Sum256(content[:eicarSize])
	return hex.EncodeToString(sum[:]) == eicarDigest && strings.Trim(string(content[eicarSize:]), eicarSpace) == ""
}

// stat returns the length of the file in bytes, and whether it is a regular one.
func stat(fd int) (size int64, regular bool, err error) {
	var st unix.Stat_t
	for {
		err := unix.Fstat(fd, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, false, fmt.Errorf("%w: fstat: %w", scanner.ErrRead, err)
		}
		return st.Size, st.Mode&unix.S_IFMT == unix.S_IFREG, nil
	}
}

func pread(fd int, p []byte, offset int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("%w: pread at %d: %w", scanner.ErrRead, offset, err)
		}
		return n, nil
	}
}
