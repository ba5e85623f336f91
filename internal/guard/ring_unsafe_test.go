package guard

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringWrite writes to the start of a file with io_uring(7), by one submission.
func ringWrite(fd int, content []byte) {
	var params [120]byte // struct io_uring_params
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		panic(fmt.Errorf("io_uring_setup: %w", errno))
	}
	defer unix.Close(int(ring))
	const sqOffsets, cqOffsets, sqes = 40, 80, 0x10000000
	word := func(at int) uint32 { return *(*uint32)(unsafe.Pointer(&params[at])) }
	rings := ringMap(int(ring), 0)
	entries := ringMap(int(ring), sqes)
	defer func() { check(unix.Munmap(rings), unix.Munmap(entries)) }()
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[offset])) }
	entry := (*struct {
		opcode, flags uint8
		ioprio        uint16
		fd            int32
		off, addr     uint64
		length        uint32
	})(unsafe.Pointer(&entries[0]))
	const opWrite, getEvents = 23, 1
	entry.opcode, entry.fd = opWrite, int32(fd)
	entry.addr, entry.length = uint64(uintptr(unsafe.Pointer(&content[0]))), uint32(len(content))
	*at(word(sqOffsets + 24)) = 0              // the array's first: the first entry
	atomic.AddUint32(at(word(sqOffsets+4)), 1) // the tail
	// A signal, such as Go's own, ends the wait before the completion is there.
	for submit := uintptr(1); atomic.LoadUint32(at(word(cqOffsets+4))) == 0; submit = 0 {
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, submit, 1, getEvents, 0, 0); errno != 0 && errno != unix.EINTR {
			panic(fmt.Errorf("io_uring_enter: %w", errno))
		}
	}
	result := *(*int32)(unsafe.Pointer(&rings[word(cqOffsets+20)+8])) // of the first completion
	if result < 0 {
		panic(fmt.Errorf("write by io_uring: %w", unix.Errno(-result)))
	}
	check(whole(int(result), len(content)))
}

// ringMap maps a part of a ring.
func ringMap(ring int, offset int64) []byte {
	m, err := unix.Mmap(ring, offset, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	check(err)
	return m
}
