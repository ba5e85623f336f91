// Command workload is what the benchmark builds in a container: a small program
// with imports enough to keep the compiler and the linker busy for some seconds.
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run() error {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := fmt.Fprint(w, strings.Repeat("workload ", 1000)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Println(packed.Len(), "bytes")
	return nil
}
