package main

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/tenant"
)

func clamds(connections ...int) (all []tenant.Scanner) {
	all = append(all, tenant.Scanner{Name: "list", Hashlist: &tenant.Hashlist{}})
	for _, n := range connections {
		all = append(all, tenant.Scanner{Clamd: &tenant.Clamd{Connections: n}})
	}
	return all
}

// TestBudget: nobody gets what another has, events are served first and leases last.
func TestBudget(t *testing.T) {
	for _, tc := range []struct {
		descriptors, readers int
		scanners             []tenant.Scanner
		marks, lacking       bool
	}{
		{256, 1, clamds(), true, false},
		{1024, 8, clamds(4), true, false},
		{1024, 8, clamds(256, 256), false, true},
		{128, 2, clamds(4), true, false},
		{4096, 8, clamds(256), true, false},
		{maxDescriptors, 8, clamds(256, 256), true, false},
		{maxDescriptors, 1024, clamds(), true, false},
	} {
		b := newBudget(tc.descriptors, tc.readers, tc.scanners)
		if b.held != int64(tc.descriptors/2) || b.reading != 4*tc.readers {
			t.Errorf("%+v: events have %d and %d", tc, b.held, b.reading)
		}
		if tc.marks != (b.marks > 0) || b.marks > tc.descriptors/4 {
			t.Errorf("%+v: %d marks", tc, b.marks)
		}
		if tc.lacking != (b.left() < 0) || tc.lacking != strings.Contains(b.problem(), "LimitNOFILE") {
			t.Errorf("%+v: %d are left over, %q", tc, b.left(), b.problem())
		}
		sum := 0
		for _, s := range b.status(nil, guard.MarkStats{}).Shares {
			sum += s.Max
		}
		if sum != b.descriptors-b.left() {
			t.Errorf("%+v: the status shares %d of %d out, with %d left", tc, sum, b.descriptors, b.left())
		}
	}
}

// TestBudgetStatus: what is counted is told.
func TestBudgetStatus(t *testing.T) {
	b := newBudget(1024, 2, clamds(4))
	s := b.status([]guard.TenantState{{Held: 3}, {Held: 4}}, guard.MarkStats{Now: 9, Leased: 5})
	if s.Limit != 1024 || s.Open == 0 {
		t.Errorf("%+v", s)
	}
	for _, share := range s.Shares {
		want := map[string]int{"held": 7, "marks": 5}[share.Kind]
		if (share.Used != nil) != (want != 0) || share.Used != nil && *share.Used != want {
			t.Errorf("%+v, want %d used", share, want)
		}
		if share.Kind == "scanners" && share.Max != 5 {
			t.Errorf("%+v, want four connections and one more", share)
		}
	}
}

// TestKernelDescriptorLimit: the agent's descriptors have numbers that a successor can
// try, however many it may have.
func TestKernelDescriptorLimit(t *testing.T) {
	keepKnobs(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) })
	for _, soft := range []uint64{was.Max, 1000} {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: soft, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		n := raiseLimits(discard())
		var now unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
			t.Fatal(err)
		}
		if want := min(was.Max, maxDescriptors); uint64(n) != want || now.Cur != want || now.Max != was.Max {
			t.Errorf("from %d: %d descriptors, and the limit is %+v", soft, n, now)
		}
	}
}

// TestWantedDescriptors: all that there may be, up to what a successor can try.
func TestWantedDescriptors(t *testing.T) {
	for hard, want := range map[uint64]uint64{1024: 1024, maxDescriptors: maxDescriptors, 1 << 20: maxDescriptors, ^uint64(0): maxDescriptors} {
		if got := wanted(hard); got.Cur != want || got.Max != hard {
			t.Errorf("of %d: %+v", hard, got)
		}
	}
}

// TestKernelGroupsCheck: too few fanotify groups are said, with what to do.
func TestKernelGroupsCheck(t *testing.T) {
	keepKnobs(t)
	for limit, short := range map[string]bool{"40": true, "41": false} {
		writeKnob(t, groupsKnob, limit)
		if got := checkGroups(5, 20); short != strings.Contains(got, "max_user_groups=65536") {
			t.Errorf("%s groups for 5 tenants and 20 containers: %q", limit, got)
		}
	}
}
