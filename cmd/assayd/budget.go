package main

import (
	"fmt"
	"os"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/tenant"
)

// maxDescriptors bounds the numbers of the agent's descriptors, however high
// RLIMIT_NOFILE is. An event is answered by the number of its descriptor, and
// whoever answers for an agent that has crashed has to try them all.
const maxDescriptors = 65536

// A budget says who may have how many of the agent's descriptors. Events come first,
// then the scanners that judge them, then containers and all else; leases have what is
// left, and give some of it up when events need more than their share.
type budget struct {
	descriptors int // their numbers are below it

	reading    int   // events that a reader has in hand
	held       int64 // events that wait or are scanned: more than that if marks leave room
	scanners   int   // connections
	containers int   // groups, processes and layers: an allowance, not a bound
	other      int   // sockets, files, epolls
	wishes     int   // clean files that wait for their mark
	marks      int   // leases
}

// newBudget shares descriptors out.
func newBudget(descriptors, readers int, scanners []tenant.Scanner) budget {
	b := budget{
		descriptors: descriptors, reading: readers * fanotify.EventsARead, held: int64(descriptors / 2),
		scanners: connections(scanners), containers: descriptors / 8, other: min(256, descriptors/16),
	}
	left := b.left()
	for b.marks = max(0, min(descriptors/4, left)); b.marks > 0 && b.marks+guard.Wishes(b.marks) > left; {
		b.marks--
	}
	b.wishes = guard.Wishes(b.marks)
	return b
}

// left is what nobody has yet; below 0 there is not enough for all.
func (b *budget) left() int {
	return b.descriptors - b.reading - int(b.held) - b.scanners - b.containers - b.other - b.wishes - b.marks
}

// connections is how many descriptors the scanners keep. Those of a file list are not
// kept; a clamd has a session more than it scans on, for questions about itself.
func connections(scanners []tenant.Scanner) (n int) {
	for _, s := range scanners {
		if s.Clamd != nil {
			n += s.Clamd.Connections + 1
		}
	}
	return n
}

// problem says what is wrong with the budget, or "".
func (b *budget) problem() string {
	if n := -b.left(); n > 0 {
		return fmt.Sprintf("%d descriptors do not suffice for the configured scanners, %d are lacking: raise LimitNOFILE (up to %d is used), or lower `connections`",
			b.descriptors, n, maxDescriptors)
	}
	return ""
}

// status describes the budget and its use.
func (b *budget) status(tenants []guard.TenantState, marks guard.MarkStats) api.DescriptorsStatus {
	held, leased := 0, marks.Leased
	for i := range tenants {
		held += tenants[i].Held
	}
	s := api.DescriptorsStatus{Limit: b.descriptors, Shares: []api.DescriptorShare{
		{Kind: "reading", Max: b.reading},
		{Kind: "held", Max: int(b.held), Used: &held},
		{Kind: "scanners", Max: b.scanners},
		{Kind: "containers", Max: b.containers},
		{Kind: "other", Max: b.other},
		{Kind: "wishes", Max: b.wishes},
		{Kind: "marks", Max: b.marks, Used: &leased},
	}}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Open = len(open)
	}
	return s
}
