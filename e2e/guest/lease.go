package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lease holds a lease on a file of its own until there is a file with the suffix
// ".release", whatever the kernel asks of it meanwhile: Go's runtime ignores SIGIO.
func lease(kind, path string) error {
	flags, typ := os.O_RDONLY, unix.F_RDLCK
	if kind == "write" {
		flags, typ = os.O_RDWR, unix.F_WRLCK
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, typ)
	for end := time.Now().Add(10 * time.Second); errors.Is(err, unix.EAGAIN) && time.Now().Before(end); {
		// Whoever looked at the file just now still has it open.
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the kernel does not tell when
		_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, typ)
	}
	if err != nil {
		return fmt.Errorf("lease on %s: %w", path, err)
	}
	fmt.Println("held")
	for unix.Access(path+".release", unix.F_OK) != nil {
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the host tells by a file
	}
	return nil
}
