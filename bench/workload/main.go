// Command workload is what the benchmark builds in a container: a small program
// with imports enough to keep the compiler and the linker busy for some seconds.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"text/template"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := json.Marshal(map[string]any{"sum": sha256.Sum256([]byte("workload"))})
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return template.Must(template.New("").Parse("{{.}} bytes\n")).Execute(os.Stdout, packed.Len())
}
