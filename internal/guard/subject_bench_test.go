package guard

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkSubject is what it costs to say for the record who opens what.
func BenchmarkSubject(b *testing.B) {
	f, err := os.Open("/bin/sh")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	tid := unix.Gettid()
	b.Run("path", func(b *testing.B) {
		for b.Loop() {
			hintOf(int(f.Fd()))
		}
	})
	b.Run("process", func(b *testing.B) {
		for b.Loop() {
			tgid(tid)
		}
	})
	b.Run("program", func(b *testing.B) {
		for b.Loop() {
			exeOf(tid)
		}
	})
}
