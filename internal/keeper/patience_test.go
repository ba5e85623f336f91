package keeper

import (
	"log/slog"
	"testing"
	"time"
)

// TestPatience: an agent that holds leases is killed before the kernel would let a
// writer past its marks, however long its tenants would wait.
func TestPatience(t *testing.T) {
	s := NewServer(Options{Logger: slog.New(slog.DiscardHandler)})
	if got := s.patience(); got != 0 {
		t.Errorf("patience without containers is %v, want none", got)
	}
	s.held["a"] = &holding{Entry: Entry{Grace: time.Hour}}
	s.held["b"] = &holding{Entry: Entry{Grace: 2 * time.Hour}}
	if got := s.patience(); got != time.Hour {
		t.Errorf("patience is %v, want the shortest grace", got)
	}
	s.held["b"].leases = map[uint64]int{1: 1}
	if got := s.patience(); got <= 0 || got >= leaseBreakTime() {
		t.Errorf("patience with leases is %v, and the kernel's is %v", got, leaseBreakTime())
	}
}
