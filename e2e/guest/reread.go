package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// rereadEvery is the pause between two reads.
const rereadEvery = 5 * time.Millisecond

// reread reads a file for ever. Into another one, which it opens once, it writes how
// often it has, and what the last time gave.
func reread(name, said string) error {
	out, err := os.OpenFile(said, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		line := fmt.Sprintf("%d %s", n, outcome(os.ReadFile(name)))
		if _, err := out.WriteAt(fmt.Appendf(nil, "%-64s\n", line), 0); err != nil {
			return err
		}
		time.Sleep(rereadEvery) //nolint:forbidigo // it is a rate
	}
}

// outcome says what came of reading a file.
func outcome(data []byte, err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return fmt.Sprintf("%d bytes", len(data))
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}
