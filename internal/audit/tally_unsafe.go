package audit

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// tallySize is how much of the file is used and mapped, in bytes.
const tallySize = 4096

// A tallyPage is the content of the file, in the machine's own byte order: no
// other machine ever sees it. The counters only ever grow.
type tallyPage struct {
	magic    uint64
	version  uint64
	began    int64         // when the numbering began, nanoseconds since 1970
	appended atomic.Uint64 // records given a sequence number: the number of the last one
	settled  atomic.Uint64 // of these, written to the record file or known to be lost
	noticed  atomic.Uint64 // lost with a process, as its successor found it
	answered atomic.Uint64 // events whose record was announced before their answer
	told     atomic.Uint64 // of these, with a record
}

// mapTally maps the first page of a file that is at least that long, shared, so
// that the kernel keeps what a killed process has stored.
func mapTally(fd int) (*tallyPage, func() error, error) {
	mem, err := syscall.Mmap(fd, 0, tallySize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	// The mapping is aligned to a page, and longer than the struct.
	page := (*tallyPage)(unsafe.Pointer(&mem[0]))
	return page, func() error { return syscall.Munmap(mem) }, nil
}
