package clamd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
	"github.com/assay-project/assay/scanner/scannertest"
)

// patience only turns a hung test into a failed one.
const patience = 30 * time.Second

// addresses returns both ways to a clamd.
func addresses(i *clamdtest.Instance) map[string]string {
	return map[string]string{"unix": "unix:" + i.Socket(), "tcp": "tcp:" + i.TCP()}
}

// newScanner returns a scanner that is closed when the test ends.
func newScanner(tb testing.TB, opts Options) *Scanner {
	tb.Helper()
	s, err := New(opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// eventually waits until ok returns nil.
func eventually(tb testing.TB, ok func() error) {
	tb.Helper()
	if err := wait(ok); err != nil {
		tb.Fatal(err)
	}
}

// wait waits until ok returns nil, and returns its last error if it never does.
func wait(ok func() error) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-end:
			return err
		}
	}
}

func TestRealConformance(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	malware := clamdtest.Default()
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			scannertest.Run(t, scannertest.Config{
				New: func(t *testing.T) scanner.Scanner {
					t.Helper()
					s, err := New(Options{Address: address, RefreshInterval: 20 * time.Millisecond})
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Malicious: []scannertest.Sample{
					{Content: malware.Content, Signature: malware.Name},
					{Content: append(bytes.Repeat([]byte("x"), 300<<10), malware.Content...), Signature: malware.Name},
				},
				Clean: [][]byte{[]byte("nothing to find"), bytes.Repeat([]byte("clean "), 100_000)},
				Hang: func(t *testing.T) scannertest.Hung {
					t.Helper()
					return hung(t, name)
				},
				Change: func(t *testing.T, s scanner.Scanner) {
					t.Helper()
					before := known(t, s)
					daemon.ReplaceDatabase(t, malware)
					eventually(t, func() error {
						if now := s.Generation(); now == "" || now == before {
							return fmt.Errorf("generation is still %q", now)
						}
						return nil
					})
				},
			})
		})
	}
}

func TestRealVerdicts(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{Config: []string{
		"MaxFileSize 1M", "StreamMaxLength 2M", "AlertEncrypted yes",
	}})
	malware := clamdtest.Default()
	for name, address := range addresses(daemon) {
		for _, c := range []struct {
			name    string
			content []byte
			limit   int64
			want    scanner.Verdict
		}{
			{name: "clean", content: []byte("nothing to find"), want: scanner.Verdict{Outcome: scanner.Clean, Mark: true}},
			{name: "malicious", content: malware.Content, want: scanner.Verdict{Outcome: scanner.Malicious, Signature: malware.Name + ".UNOFFICIAL", Mark: true}},
			{name: "found in a program", content: append([]byte("\x7fELF\x02\x01\x01"), malware.Content...), want: scanner.Verdict{Outcome: scanner.Malicious, Signature: malware.Name + ".UNOFFICIAL", Mark: true}},
			{name: "RAR archive", content: []byte(rarMagic + "\x00" + string(malware.Content)), want: scanner.Verdict{Outcome: scanner.Malicious, Signature: malware.Name + ".UNOFFICIAL", Mark: true}},
			{name: "too large for clamd", content: make([]byte, 1<<20+1), want: scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonTooLarge}},
			{name: "too large for a stream", content: make([]byte, 3<<20), want: scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonTooLarge}},
			{name: "too large for the driver", content: malware.Content, limit: int64(len(malware.Content)) - 1, want: scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonTooLarge}},
			{name: "as large as allowed", content: malware.Content, limit: int64(len(malware.Content)), want: scanner.Verdict{Outcome: scanner.Malicious, Signature: malware.Name + ".UNOFFICIAL", Mark: true}},
			{name: "nested", content: nested(), want: scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonLimits}},
			{name: "encrypted", content: encryptedZip(t), want: scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonEncrypted}},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				s := newScanner(t, Options{Address: address, MaxFileSize: c.limit})
				c.want.Generation = known(t, s)
				if got := s.Scan(t.Context(), scannertest.FileOf(t, c.content)); got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
			})
		}
	}
}

// known waits until s knows its generation.
func known(t *testing.T, s scanner.Scanner) (gen scanner.Generation) {
	t.Helper()
	eventually(t, func() error {
		if gen = s.Generation(); gen == "" {
			return errors.New("generation is still unknown")
		}
		return nil
	})
	return gen
}

func TestRealSilentLimits(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{Config: []string{"AlertExceedsMax no"}})
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			s := newScanner(t, Options{Address: address})
			if err := s.Health(t.Context()); !errors.Is(err, ErrSilentLimits) {
				t.Errorf("Health: %v, want %v", err, ErrSilentLimits)
			}
			big := scannertest.SparseFile(t, DefaultMaxFileSize+1)
			if v := s.Scan(t.Context(), big); v.Outcome != scanner.Unscannable || v.Reason != scanner.ReasonTooLarge {
				t.Errorf("larger than clamd's default limit: %+v", v)
			}
			big.Size = 1 // The lender looked when the file was small.
			if v := s.Scan(t.Context(), big); v.Outcome != scanner.Unscannable || v.Reason != scanner.ReasonTooLarge {
				t.Errorf("grown larger than clamd's default limit: %+v", v)
			}
		})
	}
}

func TestRealRestart(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			// The refresher asks once and never again.
			s := newScanner(t, Options{Address: address, RefreshInterval: time.Hour, BackoffMin: time.Millisecond, BackoffMax: time.Millisecond})
			f := scannertest.FileOf(t, clamdtest.Default().Content)
			wantOutcome(t, s.Scan(t.Context(), f), scanner.Malicious)
			daemon.Restart(t)
			wantOutcome(t, s.Scan(t.Context(), f), scanner.Malicious)
			daemon.Kill(t)
			v := s.Scan(t.Context(), f)
			wantOutcome(t, v, scanner.Error)
			if !errors.Is(v.Err, scanner.ErrUnavailable) {
				t.Errorf("clamd is down: %v, want %v", v.Err, scanner.ErrUnavailable)
			}
			if s.Generation() == "" {
				t.Error("the generation is forgotten while clamd is down")
			}
			err := s.Health(t.Context())
			if !errors.Is(err, scanner.ErrUnavailable) || !strings.Contains(err.Error(), "is clamd running") {
				t.Errorf("Health of a clamd that is down: %v", err)
			}
			daemon.Restart(t)
			eventually(t, func() error { return s.Scan(t.Context(), f).Err })
		})
	}
}

// TestRealHung: clamd hangs, then recovers, then hangs and is killed.
func TestRealHung(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(daemon.PID(), s); err != nil {
			t.Fatal(err)
		}
	}
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			s := newScanner(t, Options{Address: address, RefreshInterval: time.Hour})
			f := scannertest.FileOf(t, clamdtest.Default().Content)
			wantOutcome(t, s.Scan(t.Context(), f), scanner.Malicious)
			signal(syscall.SIGSTOP)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if v := s.Scan(ctx, f); !errors.Is(v.Err, context.DeadlineExceeded) {
				t.Errorf("hung: got %+v, want an error that wraps %q", v, context.DeadlineExceeded)
			}
			signal(syscall.SIGCONT)
			wantOutcome(t, s.Scan(t.Context(), f), scanner.Malicious)
			signal(syscall.SIGSTOP)
			got := make(chan scanner.Verdict)
			go func() { got <- s.Scan(t.Context(), f) }()
			daemon.Kill(t)
			if v := <-got; !errors.Is(v.Err, scanner.ErrUnavailable) {
				t.Errorf("killed: got %+v, want an error that wraps %q", v, scanner.ErrUnavailable)
			}
			daemon.Restart(t)
		})
	}
}

func TestRealGenerationComesWithScans(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			s := newScanner(t, Options{Address: address, RefreshInterval: time.Hour})
			wantOutcome(t, s.Scan(t.Context(), plain(t)), scanner.Clean) // So that a session is there already.
			before := known(t, s)
			other := clamdtest.Signature{Name: "Assay.Other", Content: []byte("other malware " + name)}
			daemon.ReplaceDatabase(t, clamdtest.Default(), other)
			v := s.Scan(t.Context(), scannertest.FileOf(t, other.Content))
			wantOutcome(t, v, scanner.Malicious)
			if v.Generation == "" || v.Generation == before || v.Generation != s.Generation() || !v.Mark {
				t.Errorf("database replaced: %+v, the scanner was at %q and is at %q", v, before, s.Generation())
			}
		})
	}
}

// TestRealUnreadable: clamd itself calls clean what it cannot read.
func TestRealUnreadable(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	for name, address := range addresses(daemon) {
		t.Run(name, func(t *testing.T) {
			s := newScanner(t, Options{Address: address})
			_, path := scannertest.TempFile(t, clamdtest.Default().Content)
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			v := s.Scan(t.Context(), &scanner.File{FD: int(file.Fd()), Size: 10})
			if v.Outcome != scanner.Error || !errors.Is(v.Err, scanner.ErrRead) {
				t.Errorf("got %+v, want an error that wraps %q", v, scanner.ErrRead)
			}
		})
	}
}

func wantOutcome(t *testing.T, v scanner.Verdict, want scanner.Outcome) {
	t.Helper()
	if v.Outcome != want {
		t.Errorf("got %v, %+v; want %v", v.Outcome, v, want)
	}
}

// encryptedZip returns an archive with one member that is marked as encrypted.
func encryptedZip(t *testing.T) []byte {
	t.Helper()
	const encrypted = 1 // general purpose bit 0: APPNOTE.TXT 4.4.4
	return zipOf(t, encrypted, "secret.txt", []byte("twelve bytes of header, then what is encrypted"))
}

func BenchmarkScan(b *testing.B) {
	daemon := clamdtest.Start(b, clamdtest.Options{})
	for _, network := range []string{"unix", "tcp"} {
		for _, kind := range []string{"20KB", "1MB"} {
			size := map[string]int{"20KB": 20 << 10, "1MB": 1 << 20}[kind]
			b.Run(network+"/"+kind, func(b *testing.B) {
				s := newScanner(b, Options{Address: addresses(daemon)[network]})
				f := scannertest.FileOf(b, bytes.Repeat([]byte("a"), size))
				for b.Loop() {
					if v := s.Scan(b.Context(), f); v.Outcome != scanner.Clean {
						b.Fatalf("%+v", v)
					}
				}
			})
		}
	}
	b.Run("health", func(b *testing.B) {
		s := newScanner(b, Options{Address: "unix:" + daemon.Socket()})
		for b.Loop() {
			if err := s.Health(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
