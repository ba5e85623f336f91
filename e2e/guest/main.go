// Command guest runs inside test containers and does what busybox cannot: it
// reports the exact errno of an open, and talks over a unix socket. It is static
// and small, and part of the test image's lowest layer.
//
//	guest read FILE...   prints "FILE: N bytes" or "FILE: ERRNO" for each
//	guest reread FILE SAID
//	                     reads FILE for ever, and writes into SAID how often and what the
//	                     last time gave
//	guest socket PATH    one round trip over a unix socket at PATH
//	guest write-nonblock FILE, write-mapped FILE
//	                     overwrites the beginning of FILE with standard input: opened
//	                     with O_NONBLOCK, again for as long as that says EAGAIN, which
//	                     it prints; or through a shared mapping
//	guest write-lease FILE, read-lease FILE
//	                     holds a lease on FILE until FILE.release is there
//	guest load FLAGS     opens files in many processes, and logs each open; driven by
//	                     package fault's Load
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: guest read FILE... | reread FILE SAID | socket PATH | write-nonblock FILE | write-mapped FILE | load FLAGS"))
	}
	switch os.Args[1] {
	case "read":
		os.Exit(read(os.Args[2:]))
	case "reread":
		if len(os.Args) != 4 {
			fail(errors.New("usage: guest reread FILE SAID"))
		}
		fail(reread(os.Args[2], os.Args[3]))
	case "socket":
		if err := socket(os.Args[2]); err != nil {
			fail(err)
		}
		fmt.Println("round trip")
	case "write-nonblock", "write-mapped":
		if err := overwrite(os.Args[2], os.Args[1] == "write-mapped"); err != nil {
			fail(err)
		}
	case "write-lease", "read-lease":
		kind, _, _ := strings.Cut(os.Args[1], "-")
		if err := lease(kind, os.Args[2]); err != nil {
			fail(err)
		}
	case "load":
		if err := load(os.Args[2:]); err != nil {
			fail(err)
		}
	default:
		fail(fmt.Errorf("unknown command %q", os.Args[1]))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "guest:", err)
	os.Exit(2)
}

// read reads every file to its end; the exit code is 1 if one could not be.
func read(files []string) int {
	code := 0
	for _, name := range files {
		data, err := os.ReadFile(name)
		fmt.Printf("%s: %s\n", name, outcome(data, err))
		if err != nil {
			code = 1
		}
	}
	return code
}

// overwrite writes standard input over the beginning of a file.
func overwrite(name string, mapped bool) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	flags := unix.O_RDWR
	if !mapped {
		flags |= unix.O_NONBLOCK
	}
	fd, err := unix.Open(name, flags, 0)
	if errors.Is(err, unix.EAGAIN) {
		fmt.Println("EAGAIN, then open")
	}
	for end := time.Now().Add(10 * time.Second); errors.Is(err, unix.EAGAIN) && time.Now().Before(end); {
		fd, err = unix.Open(name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !mapped {
		_, err = unix.Pwrite(fd, text, 0)
		return err
	}
	memory, err := unix.Mmap(fd, 0, len(text), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(memory, text)
	return unix.Munmap(memory)
}

// socket listens at path, connects to it and sends a line to itself.
func socket(path string) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer listener.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	server, err := listener.Accept()
	if err != nil {
		return err
	}
	if _, err := client.Write([]byte("ping")); err != nil {
		return err
	}
	if err := client.Close(); err != nil {
		return err
	}
	got, err := io.ReadAll(server)
	if err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("got %q over the socket, want %q", got, "ping")
	}
	return nil
}
