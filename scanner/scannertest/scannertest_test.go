package scannertest_test

import (
	"bytes"
	"testing"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

func harmless() [][]byte {
	return [][]byte{[]byte("nothing to see"), bytes.Repeat([]byte("x"), 200_000)}
}

func malicious() []scannertest.Sample {
	return []scannertest.Sample{
		{Content: []byte("this is evil"), Signature: "Evil"},
		{Content: append(bytes.Repeat([]byte("x"), 200_000), "evil"...), Signature: "Test.Evil"},
	}
}

func TestFakeConforms(t *testing.T) {
	scannertest.Run(t, scannertest.Config{
		New: func(*testing.T) scanner.Scanner {
			return scannertest.NewFake("1", scannertest.Contains("evil", "Test.Evil"))
		},
		Malicious: malicious(),
		Clean:     harmless(),
		Hang: func(t *testing.T) scannertest.Hung {
			t.Helper()
			started := make(chan struct{})
			return scannertest.Hung{
				Scanner: scannertest.NewFake("1", scannertest.Hang(started)),
				File:    scannertest.FileOf(t, nil),
				Started: started,
			}
		},
		Change: func(_ *testing.T, s scanner.Scanner) {
			s.(*scannertest.Fake).SetGeneration("2") //nolint:errcheck // It is what New returns.
		},
	})
}

func TestAlwaysConforms(t *testing.T) {
	for name, cfg := range map[string]scannertest.Config{
		"clean": {
			New:   func(*testing.T) scanner.Scanner { return scannertest.Always(scanner.CleanVerdict("1")) },
			Clean: harmless(),
		},
		"malicious": {
			New: func(*testing.T) scanner.Scanner {
				return scannertest.Always(scanner.MaliciousVerdict("Test.Evil", "1"))
			},
			Malicious: malicious(),
		},
		"unscannable": {
			New: func(*testing.T) scanner.Scanner {
				return scannertest.Always(scanner.UnscannableVerdict(scanner.ReasonFormat, "1"))
			},
		},
	} {
		t.Run(name, func(t *testing.T) { scannertest.Run(t, cfg) })
	}
}
