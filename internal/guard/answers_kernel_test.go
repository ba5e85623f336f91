package guard

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// samples is a container's lower layer.
func samples() map[string]string { return map[string]string{"good": "content", "bad": needle} }

func TestKernelVerdictsDecide(t *testing.T) {
	r := newRig(t, newContains(), config())
	c := kerneltest.NewContainer(t, samples(), "")
	if g := r.announced(t, c); g.Marks != 1 || g.Tenant != "default" || g.Exempt {
		t.Errorf("the reply was %+v", g)
	}
	for _, read := range []struct {
		name string
		do   func(file string) *opener
	}{
		{"from the host", func(file string) *opener { return open(t, c.Path(file)) }},
		{"inside", func(file string) *opener { return begin(t, c.Command(t, "cat", c.Path(file))) }},
		{"inside, in a mount namespace of its own", func(file string) *opener {
			return begin(t, c.Command(t, "unshare", "--mount", "cat", c.Path(file)))
		}},
	} {
		t.Run(read.name, func(t *testing.T) {
			read.do("good").wantContent(t, "content")
			want := audit.Record{Op: "open", Decision: "allow", Verdict: "clean", Source: "scan", Reason: audit.ReasonClean}
			wantRecord(t, r.next(t), want, c.Path("good"))
			read.do("bad").wantDenied(t)
			want = audit.Record{Op: "open", Decision: "deny", Verdict: "malicious", Source: "scan", Reason: audit.ReasonMalicious}
			wantRecord(t, r.next(t), want, c.Path("bad"))
		})
	}
	if out, err := c.Shell(t, "echo "+needle+" > written; echo fine > other; cat other"); err != nil || out != "fine\n" {
		t.Errorf("a file written in the container: %q, %v", out, err)
	}
	begin(t, c.Command(t, "cat", c.Path("written"))).wantDenied(t)
}

// wantRecord compares what a record says of the decision, and the path's end:
// its beginning depends on the opener's mount.
func wantRecord(t *testing.T, got, want audit.Record, path string) {
	t.Helper()
	if got.Op != want.Op || got.Decision != want.Decision || got.Verdict != want.Verdict ||
		got.Source != want.Source || got.Reason != want.Reason || !strings.HasSuffix(got.Path, path) {
		t.Errorf("the record is %+v, want %+v for %s", got, want, path)
	}
	if got.PID <= 1 || got.Exe == "" || got.Container.ID == "" || got.File.Identity == "" {
		t.Errorf("the record leaves out who, where or what: %+v", got)
	}
}

// TestKernelExec runs programs of a container: a malicious one, a clean one, and
// a malicious script with a clean interpreter.
func TestKernelExec(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	scans := newContains()
	r := newRig(t, scans, config())
	c := kerneltest.NewContainer(t, map[string]string{
		"true": string(program), "evil": string(program) + needle, "script": "#!/bin/sh\n# " + needle + "\n",
	}, "")
	r.announced(t, c)
	if out, ok := begin(t, c.Command(t, c.Path("true"))).result(t); !ok {
		t.Errorf("a clean program: %q", out)
	}
	if n := scans.Calls(); n != 1 {
		t.Errorf("%d scans for one exec", n)
	}
	if got := r.next(t); got.Op != "exec" || got.Decision != "allow" {
		t.Errorf("the record of the exec is %+v", got)
	}
	r.noRecord(t)
	// What is answered at once is counted after the answer.
	eventually(t, "the open is counted as the second half of its exec", func() bool {
		return r.Tenants()[0].Answers.Reasons[audit.ReasonExecPair.String()] == 1
	})
	for _, name := range []string{"evil", "script"} {
		if out, ok := begin(t, c.Command(t, c.Path(name))).result(t); ok || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("exec of %s: %q, %v", name, out, ok)
		}
		if got := r.next(t); got.Op != "exec" || got.Decision != "deny" || got.Reason != audit.ReasonMalicious {
			t.Errorf("the record of %s is %+v", name, got)
		}
	}
}

// TestKernelExecPairIsForItsThread: what one exec has proven is nobody else's.
func TestKernelExecPairIsForItsThread(t *testing.T) {
	program, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	scans := newContains()
	r := newRig(t, scans, config())
	c := kerneltest.NewContainer(t, map[string]string{"cat": string(program)}, "")
	r.announced(t, c)
	// The program reads itself: exec, its open, and an open that is a new one.
	out, ok := begin(t, c.Command(t, c.Path("cat"), c.Path("cat"))).result(t)
	if !ok || !bytes.Equal([]byte(out), program) {
		t.Errorf("the program read %d bytes of itself, %v", len(out), ok)
	}
	if n := scans.Calls(); n != 2 {
		t.Errorf("%d scans for an exec and an open, want 2", n)
	}
}

// TestKernelAudit: audit mode lets the opener go before the scan and tells the
// truth afterwards.
func TestKernelAudit(t *testing.T) {
	s := newStubborn(t, func() scanner.Verdict { return scanner.MaliciousVerdict("Test.Malware", "1") })
	r := newRig(t, s, config(func(p *tenant.Tenant) { p.Mode, p.Deadline = tenant.Audit, time.Hour }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	open(t, c.Path("bad")).wantContent(t, needle) // with the scan still under way
	s.began(t)
	r.noRecord(t)
	s.release()
	got := r.next(t)
	if got.Decision != "allow" || got.Reason != audit.ReasonAuditMode || got.Verdict != "malicious" || got.Scanners[0].Signature != "Test.Malware" {
		t.Errorf("the record is %+v", got)
	}
	eventually(t, "the descriptor is released", func() bool { return r.held.n.Load() == 0 })
	if n := r.Tenants()[0].Answers.Unscanned; n != 1 {
		t.Errorf("%d unscanned allows are counted, want 1", n)
	}
}

// TestKernelSwitches tries every outcome that is no verdict with every action.
func TestKernelSwitches(t *testing.T) {
	hang := scannertest.Hang(nil)
	says := func(v scanner.Verdict) scannertest.Script {
		return func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict { return v }
	}
	for _, tc := range []struct {
		name   string
		script scannertest.Script
		set    func(*tenant.Tenant, tenant.Action)
		reason audit.Reason
		source string
	}{
		{"onError", says(scanner.ErrorVerdict(scanner.ErrUnavailable)), func(p *tenant.Tenant, a tenant.Action) { p.OnError = a }, audit.ReasonError, "scan"},
		{"panic", func(context.Context, *scanner.File, scanner.Generation) scanner.Verdict { panic("broken") }, func(p *tenant.Tenant, a tenant.Action) { p.OnError = a }, audit.ReasonError, "scan"},
		{"onTimeout", hang, func(p *tenant.Tenant, a tenant.Action) { p.OnTimeout, p.Deadline = a, 30*time.Millisecond }, audit.ReasonTimeout, ""},
		{"onUnscannable", says(scanner.UnscannableVerdict(scanner.ReasonEncrypted, "1")), func(p *tenant.Tenant, a tenant.Action) { p.OnUnscannable = a }, audit.ReasonUnscannable, "scan"},
		{"onTooLarge of the scanner", says(scanner.UnscannableVerdict(scanner.ReasonTooLarge, "1")), func(p *tenant.Tenant, a tenant.Action) { p.OnTooLarge = a }, audit.ReasonTooLarge, "scan"},
		{"onTooLarge of the tenant", says(scanner.CleanVerdict("1")), func(p *tenant.Tenant, a tenant.Action) { p.OnTooLarge, p.MaxSize = a, 6 }, audit.ReasonTooLarge, "policy"},
	} {
		for _, action := range []tenant.Action{tenant.Allow, tenant.Deny} {
			t.Run(tc.name+" "+string(action), func(t *testing.T) {
				other := tenant.Deny // every other switch: only the right one may decide
				if action == tenant.Deny {
					other = tenant.Allow
				}
				r := newRig(t, scannertest.NewFake("1", tc.script), config(func(p *tenant.Tenant) {
					p.OnError, p.OnTimeout, p.OnUnscannable, p.OnTooLarge = other, other, other, other
					tc.set(p, action)
				}))
				c := kerneltest.NewContainer(t, samples(), "")
				r.announced(t, c)
				if o := open(t, c.Path("good")); action == tenant.Allow {
					o.wantContent(t, "content")
				} else {
					o.wantDenied(t)
				}
				got := r.next(t)
				if got.Decision != string(action) || got.Reason != tc.reason || tc.source != "" && got.Source != tc.source {
					t.Errorf("the record is %+v, want %s for %s", got, action, tc.reason)
				}
				answers := r.Tenants()[0].Answers
				if want := map[tenant.Action]uint64{tenant.Allow: 1}[action]; answers.Unscanned != want || answers.Allowed+answers.Denied != 1 {
					t.Errorf("counted %+v, want %d unscanned of one", answers, want)
				}
			})
		}
	}
}

// TestKernelMixedVerdicts lets 64 openers ask at once, for files that are clean,
// malicious, unscannable and erroneous: each gets its own answer.
func TestKernelMixedVerdicts(t *testing.T) {
	const each = 16
	r := newRig(t, scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
		content := make([]byte, 16)
		n, err := unix.Pread(f.FD, content, 0)
		if err != nil {
			return scanner.ErrorVerdict(err)
		}
		switch kind, _, _ := strings.Cut(string(content[:n]), " "); kind {
		case "clean":
			return scanner.CleanVerdict(gen)
		case "malicious":
			return scanner.MaliciousVerdict("Test.Malware", gen)
		case "unscannable":
			return scanner.UnscannableVerdict(scanner.ReasonFormat, gen)
		}
		return scanner.ErrorVerdict(scanner.ErrProtocol)
	}), config(func(p *tenant.Tenant) { p.OnUnscannable, p.OnError = tenant.Allow, tenant.Deny }))
	files := map[string]string{}
	for _, kind := range []string{"clean", "malicious", "unscannable", "error"} {
		for i := range each {
			files[fmt.Sprint(kind, i)] = fmt.Sprint(kind, " ", i)
		}
	}
	c := kerneltest.NewContainer(t, files, "")
	r.announced(t, c)
	openers := map[string]*opener{}
	for name := range files {
		openers[name] = open(t, c.Path(name))
	}
	for name, o := range openers {
		switch strings.TrimRight(name, "0123456789") {
		case "clean", "unscannable":
			o.wantContent(t, files[name])
		default:
			o.wantDenied(t)
		}
	}
	reasons := map[audit.Reason]int{}
	for range files {
		rec := r.next(t)
		reasons[rec.Reason]++
		if base := rec.Path[strings.LastIndexByte(rec.Path, '/')+1:]; !strings.HasPrefix(base, rec.Verdict) {
			t.Errorf("%s got the verdict %s", base, rec.Verdict)
		}
	}
	for _, reason := range []audit.Reason{audit.ReasonClean, audit.ReasonMalicious, audit.ReasonUnscannable, audit.ReasonError} {
		if reasons[reason] != each {
			t.Errorf("%d records say %s, want %d", reasons[reason], reason, each)
		}
	}
	r.noRecord(t)
}

// TestKernelChangingFile: a file that shrinks or grows under its scan.
func TestKernelChangingFile(t *testing.T) {
	for _, size := range []int64{0, 3, 1 << 20} {
		t.Run(fmt.Sprint("to ", size), func(t *testing.T) {
			var path string
			r := newRig(t, scannertest.NewFake("1", func(ctx context.Context, f *scanner.File, gen scanner.Generation) scanner.Verdict {
				before := f.Size
				if err := exec.CommandContext(ctx, "truncate", fmt.Sprint("--size=", size), path).Run(); err != nil {
					return scanner.ErrorVerdict(err)
				}
				var st unix.Stat_t
				if err := unix.Fstat(f.FD, &st); err != nil {
					return scanner.ErrorVerdict(err)
				}
				if st.Size != before {
					return scanner.ErrorVerdict(fmt.Errorf("%w: %d bytes, had %d", scanner.ErrRead, st.Size, before))
				}
				return scanner.CleanVerdict(gen)
			}), config())
			c := kerneltest.NewContainer(t, nil, "echo content > file")
			// truncate(2) raises no event, so the scanner may do that.
			path = c.Upper + "/file"
			r.announced(t, c)
			out, ok := open(t, c.Path("file")).result(t)
			if rec := r.next(t); !ok || int64(len(out)) != size || rec.Verdict != "clean" {
				t.Errorf("the opener got %d bytes, %v; the record is %+v", len(out), ok, rec)
			}
		})
	}
}

// TestKernelInstantAllocatesNothing holds the promise of the fast path with the
// guard itself in it. The opener is this process: the fast path does not ask.
func TestKernelInstantAllocatesNothing(t *testing.T) {
	r := newRig(t, scannertest.Always(scanner.CleanVerdict("1")), config())
	o := kerneltest.NewOverlay(t, samples())
	dirfd, err := unix.Open(o.Merged, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	once := func() {
		fd, err := unix.Openat(dirfd, "good", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	unguarded := allocations(2000, once)
	c := kerneltest.StartContainer(t, o, "")
	r.announced(t, c)
	guarded := allocations(2000, once)
	// Half an allocation, because under the race detector a sync.Pool forgets a
	// quarter of what it is given.
	if guarded > unguarded+0.5 {
		t.Errorf("an open allocates %v times guarded and %v times unguarded", guarded, unguarded)
	}
	eventually(t, "every guarded open is counted", func() bool {
		return r.Tenants()[0].Answers.Reasons[audit.ReasonClean.String()] == 2000
	})
	r.noRecord(t)
}

// allocations is how many objects the whole process allocates for each run of f.
func allocations(runs int, f func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(runs)
}

// TestKernelInstantOtherwise: what an instant scanner does not call clean goes the
// long way, with a record, and is not allowed because it was quick.
func TestKernelInstantOtherwise(t *testing.T) {
	for _, v := range []scanner.Verdict{
		scanner.MaliciousVerdict("Test.Malware", "1"),
		scanner.UnscannableVerdict(scanner.ReasonFormat, "1"),
		scanner.ErrorVerdict(scanner.ErrUnavailable),
	} {
		r := newRig(t, scannertest.Always(v), config())
		c := kerneltest.NewContainer(t, samples(), "")
		r.announced(t, c)
		open(t, c.Path("good")).wantDenied(t)
		if got := r.next(t); got.Verdict != v.Outcome.String() || got.Decision != "deny" {
			t.Errorf("the record is %+v", got)
		}
	}
	r := newRig(t, scannertest.Always(scanner.CleanVerdict("1")), config(func(p *tenant.Tenant) { p.MaxSize = 6 }))
	c := kerneltest.NewContainer(t, samples(), "")
	r.announced(t, c)
	open(t, c.Path("good")).wantDenied(t)
	if got := r.next(t); got.Reason != audit.ReasonTooLarge {
		t.Errorf("the record is %+v", got)
	}
}
