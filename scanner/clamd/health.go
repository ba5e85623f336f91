package clamd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner"
)

// nesting is how many archives are inside one another in what Health has
// scanned: more than the 100 that clamd accepts for MaxRecursion.
const nesting = 110

// Health connects anew and has a small file scanned in the way in which Scan does
// it. It returns nil if clamd answers and admits to its limits, ErrSilentLimits if
// it answers but hides them, or else an error that says what to do.
func (s *Scanner) Health(ctx context.Context) error {
	c, err := s.connect(ctx)
	if err != nil {
		return s.unhealthy(ctx, "is clamd running, with this socket, and its database loaded?", err)
	}
	defer c.close()
	defer s.endWith(ctx, c.close)()
	if err := c.ping(); err != nil {
		return s.unhealthy(ctx, "look into clamd's log", err)
	}
	got, err := s.scanNested(c)
	if err != nil {
		return s.unhealthy(ctx, "look into clamd's log; AppArmor or SELinux may forbid descriptor passing", err)
	}
	switch v := got.verdict; v.Outcome {
	case scanner.Clean:
		return fmt.Errorf("clamd %s: %w", s.opts.Address, ErrSilentLimits)
	case scanner.Error:
		return s.unhealthy(ctx, "look into clamd's log", v.Err)
	default:
		return nil
	}
}

func (s *Scanner) unhealthy(ctx context.Context, remedy string, err error) error {
	if ctx.Err() != nil {
		err = ended(ctx, err)
	}
	return fmt.Errorf("clamd %s: %w (%s)", s.opts.Address, err, remedy)
}

// scanNested has a file scanned that exceeds any limit on nesting.
func (s *Scanner) scanNested(c *session) (answer, error) {
	content := nested()
	file, err := memoryFile(content)
	if err != nil {
		return answer{}, err
	}
	defer file.Close()
	src, err := openSource(&scanner.File{FD: int(file.Fd()), Size: int64(len(content))}, -1)
	if err != nil {
		return answer{}, err
	}
	if s.network == "unix" {
		return c.passFile(src)
	}
	return c.streamFile(src)
}

// nested returns a gzip archive in a gzip archive, and so on: some 2.5 KB.
func nested() []byte {
	content := []byte("nested deeper than any scanner looks")
	for range nesting {
		content = stored(content)
	}
	return content
}

// stored returns a gzip archive (RFC 1952) of content, at most 64 KiB, that is one
// stored block (RFC 1951): a compressor would need a megabyte for each.
func stored(content []byte) []byte {
	const unixMade, lastStored = 3, 1
	n := uint16(len(content)) //nolint:gosec // The caller's content is short.
	b := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, unixMade, lastStored}
	b = binary.LittleEndian.AppendUint16(b, n)
	b = binary.LittleEndian.AppendUint16(b, ^n)
	b = append(b, content...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

// memoryFile returns an unnamed file with content.
func memoryFile(content []byte) (*os.File, error) {
	fd, err := retry(func() (int, error) { return unix.MemfdCreate("clamd-health", unix.MFD_CLOEXEC) })
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "clamd-health")
	if _, err := file.Write(content); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
