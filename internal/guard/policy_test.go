package guard

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestJudge compares every outcome under every combination of the four switches
// with a table that names, for each outcome, its reason and the only switch that
// may decide.
func TestJudge(t *testing.T) {
	const clean, never, onError, onTimeout, onUnscannable, onTooLarge = "always", "never", "onError", "onTimeout", "onUnscannable", "onTooLarge"
	verdicts := []struct {
		name    string
		verdict scanner.Verdict
		decider string
		reason  string
	}{
		{"clean", scanner.CleanVerdict("1"), clean, "clean"},
		{"clean of unknown generation", scanner.CleanVerdict(""), clean, "clean"},
		{"malicious", scanner.MaliciousVerdict("X", "1"), never, "malicious"},
		{"encrypted", scanner.UnscannableVerdict(scanner.ReasonEncrypted, "1"), onUnscannable, "unscannable"},
		{"limits", scanner.UnscannableVerdict(scanner.ReasonLimits, "1"), onUnscannable, "unscannable"},
		{"format", scanner.UnscannableVerdict(scanner.ReasonFormat, "1"), onUnscannable, "unscannable"},
		{"no reason", scanner.Verdict{Outcome: scanner.Unscannable}, onUnscannable, "unscannable"},
		{"too large", scanner.UnscannableVerdict(scanner.ReasonTooLarge, "1"), onTooLarge, "too-large"},
		{"unavailable", scanner.ErrorVerdict(scanner.ErrUnavailable), onError, "error"},
		{"protocol", scanner.ErrorVerdict(scanner.ErrProtocol), onError, "error"},
		{"cancelled by itself", scanner.ErrorVerdict(context.Canceled), onError, "error"},
		{"forgotten", scanner.Verdict{}, onError, "error"},
		{"an outcome that does not exist", scanner.Verdict{Outcome: 200}, onError, "error"},
		{"deadline", scanner.ErrorVerdict(fmt.Errorf("scan: %w", errDeadline)), onTimeout, "timeout"},
		{"container's end", scanner.ErrorVerdict(errors.Join(errStopping, context.Canceled)), onError, "stopping"},
		{"container's end at the deadline", scanner.ErrorVerdict(errors.Join(errStopping, errDeadline)), onError, "stopping"},
	}
	switches := []string{onError, onTimeout, onUnscannable, onTooLarge}
	for bits := range 1 << len(switches) {
		set := map[string]tenant.Action{clean: tenant.Allow, never: tenant.Deny}
		for i, name := range switches {
			set[name] = tenant.Deny
			if bits&(1<<i) != 0 {
				set[name] = tenant.Allow
			}
		}
		p := &policy{Tenant: tenant.Tenant{
			OnError: set[onError], OnTimeout: set[onTimeout], OnUnscannable: set[onUnscannable], OnTooLarge: set[onTooLarge],
		}}
		for _, v := range verdicts {
			got := p.judge(v.verdict)
			if got.decision.String() != string(set[v.decider]) || got.reason.String() != v.reason {
				t.Errorf("%s under %v: %s for %s, want %s for %s", v.name, set,
					got.decision.String(), got.reason, set[v.decider], v.reason)
			}
		}
	}
}

// TestActionOfNothing: an action that nobody set denies.
func TestActionOfNothing(t *testing.T) {
	for _, a := range []tenant.Action{"", "Allow", "deny", "maybe"} {
		if action(a) != fanotify.Deny {
			t.Errorf("%q allows", a)
		}
	}
}

// TestScanTellsTimeoutsApart: only the event's own deadline is a timeout; one that
// a scanner sets itself is that scanner's failure.
func TestScanTellsTimeoutsApart(t *testing.T) {
	own := scanner.ErrorVerdict(fmt.Errorf("%w: dial: %w", scanner.ErrUnavailable, context.DeadlineExceeded))
	p := bindPolicy(&config().Tenants[0], named(config(), scannertest.NewFake("1", func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict { return own })))
	f := scannertest.FileOf(t, []byte("content"))
	if got := p.judge(p.scan(t.Context(), f, p.evaluate).Verdict); got.reason != audit.ReasonError {
		t.Errorf("a scanner's own time limit is judged %s, want error", got.reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if got := p.judge(p.scan(ctx, f, p.evaluate).Verdict); got.reason != audit.ReasonTimeout {
		t.Errorf("the event's deadline is judged %s, want timeout", got.reason)
	}
	gone, end := context.WithCancelCause(t.Context())
	end(errStopping)
	if got := p.judge(p.scan(gone, f, p.evaluate).Verdict); got.reason != audit.ReasonStopping {
		t.Errorf("the container's end is judged %s, want stopping", got.reason)
	}
}

// TestScanAgain: a file that changed under its scan is scanned again, with the
// size it then has, a limited number of times.
func TestScanAgain(t *testing.T) {
	var sizes []int64
	fake := scannertest.NewFake("1", func(_ context.Context, f *scanner.File, _ scanner.Generation) scanner.Verdict {
		sizes = append(sizes, f.Size)
		return scanner.ErrorVerdict(scanner.ErrRead)
	})
	p := bindPolicy(&config().Tenants[0], named(config(), fake))
	f := scannertest.FileOf(t, []byte("content"))
	f.Size = 99
	if got := p.judge(p.scan(t.Context(), f, p.evaluate).Verdict); got.reason != audit.ReasonError {
		t.Errorf("a file that keeps changing is judged %s", got.reason)
	}
	if fmt.Sprint(sizes) != "[99 7 7]" {
		t.Errorf("scanned with sizes %v", sizes)
	}
}

// TestScanTooLargeAsksNobody: the tenant's limit counts before any scanner does.
func TestScanTooLargeAsksNobody(t *testing.T) {
	fake := newContains()
	cfg := config(func(p *tenant.Tenant) { p.MaxSize = 6 })
	p := bindPolicy(&cfg.Tenants[0], named(cfg, fake))
	f := scannertest.FileOf(t, []byte("content"))
	if got := p.judge(p.scan(t.Context(), f, p.evaluate).Verdict); got.reason != audit.ReasonTooLarge || fake.Calls() != 0 {
		t.Errorf("judged %s after %d scans", got.reason, fake.Calls())
	}
	f.Size = 6
	if got := p.judge(p.scan(t.Context(), f, p.evaluate).Verdict); got.reason != audit.ReasonClean {
		t.Errorf("a file of the very limit is judged %s", got.reason)
	}
}

func TestWants(t *testing.T) {
	for _, tc := range []struct {
		open, exec bool
		ops        fanotify.Ops
	}{
		{true, true, fanotify.OpOpen | fanotify.OpExec}, {true, false, fanotify.OpOpen}, {false, true, fanotify.OpExec},
	} {
		p := &policy{Tenant: tenant.Tenant{OnOpen: tc.open, OnExec: tc.exec}}
		if p.wants(false) != tc.open || p.wants(true) != tc.exec || p.ops() != tc.ops || p.paired() != (tc.open && tc.exec) {
			t.Errorf("open %v, exec %v: ops %v", tc.open, tc.exec, p.ops())
		}
	}
}

// TestRetire: a retired policy lets nobody in, and waits for who is in.
func TestRetire(t *testing.T) {
	p := bindPolicy(&config().Tenants[0], named(config(), newContains()))
	if !p.use() {
		t.Fatal("a new policy cannot be used")
	}
	retired := make(chan struct{})
	go func() {
		p.retire()
		close(retired)
	}()
	select {
	case <-retired:
		t.Error("retired while in use")
	default:
	}
	p.unuse()
	receive(t, "the policy to retire", retired)
	if p.use() {
		t.Error("a retired policy is used")
	}
}

func TestVerdictDetail(t *testing.T) {
	for _, tc := range []struct {
		verdict scanner.Verdict
		want    string
	}{
		{scanner.CleanVerdict("1"), ""},
		{scanner.MaliciousVerdict("X", "1"), ""},
		{scanner.UnscannableVerdict(scanner.ReasonEncrypted, "1"), "encrypted"},
		{scanner.ErrorVerdict(errors.New("broken pipe")), "broken pipe"},
		{scanner.ErrorVerdict(nil), ""},
		{scanner.ErrorVerdict(fmt.Errorf("scanner clamav: %w", errDeadline)), "no verdict within the deadline"},
	} {
		if got := VerdictDetail(tc.verdict); got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.verdict, got, tc.want)
		}
	}
}

func TestScannerRecords(t *testing.T) {
	got := ScannerRecords([]scanner.Report{
		{Name: "a", Verdict: scanner.MaliciousVerdict("X", "7"), Micros: 12},
		{Name: "b", Verdict: scanner.UnscannableVerdict(scanner.ReasonLimits, "8")},
	})
	want := []audit.Scanner{
		{Name: "a", Generation: "7", Verdict: "malicious", Signature: "X", Micros: 12},
		{Name: "b", Generation: "8", Verdict: "unscannable", Detail: "limits"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
