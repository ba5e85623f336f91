package guard

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A board is words in memory that processes share.
type board []byte

// openBoard maps a file, whose size is the board's.
func openBoard(path string) (board, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// word is the word i.
func (b board) word(i int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&b[4*i])) }
