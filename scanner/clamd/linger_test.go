package clamd

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/clamd/clamdtest"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestRealGivenUp: clamd closes the descriptors of scans that are given up, even of
// those that it has not begun.
func TestRealGivenUp(t *testing.T) {
	daemon := clamdtest.Start(t, clamdtest.Options{})
	s, err := New(Options{Address: "unix:" + daemon.Socket()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	descriptors := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", daemon.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	f := scannertest.FileOf(t, []byte("nothing to find"))
	if v := s.Scan(t.Context(), f); v.Outcome != scanner.Clean {
		t.Fatalf("the scan gave %+v", v)
	}
	before := descriptors()
	for i := range 1000 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Scan(ctx, f)
			close(done)
		}()
		<-time.After(time.Duration(i%100) * 5 * time.Microsecond) // anywhere in the scan
		cancel()
		<-done
	}
	eventually(t, func() error {
		// Its sessions are the scanner's, some of which are about to end.
		if now := descriptors(); now > before+8 {
			return fmt.Errorf("clamd has %d descriptors, and had %d", now, before)
		}
		return nil
	})
}
