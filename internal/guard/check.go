package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/scanner"
)

// A Verdict is the answer to Check.
type Verdict struct {
	Tenant   string
	Decision string
	Reason   audit.Reason
	Detail   string
	Result   scanner.Result
	Size     int64
	Took     time.Duration
}

// ErrNoTenant says that no tenant has the name that Check was given.
var ErrNoTenant = errors.New("no such tenant")

// Check scans the open file fd as the tenant's policy would, in the tenant's
// queue; tenantName "" means the tenant of the empty namespace. It borrows fd.
func (g *Guard) Check(ctx context.Context, fd int, size int64, tenantName, path string) (Verdict, error) {
	t := g.pool(tenantName)
	if t == nil {
		return Verdict{}, fmt.Errorf("%w: %q", ErrNoTenant, tenantName)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, t.policy.Load().Deadline)
	defer cancel()
	done := make(chan Verdict, 1)
	queued := t.submit(job{run: func() {
		p := t.usePolicy()
		if p == nil {
			done <- Verdict{Decision: "deny", Reason: audit.ReasonError, Detail: "the tenant was removed by a reload"}
			return
		}
		defer p.unuse()
		f := scanner.File{FD: fd, Size: size, Tenant: t.name, Path: path}
		r := p.scan(ctx, &f, p.evaluate)
		t.scans.Add(uint64(len(r.Reports)))
		o := p.judge(r.Verdict)
		done <- Verdict{
			Decision: o.decision.String(), Reason: o.reason,
			Detail: VerdictDetail(r.Verdict), Result: r,
		}
	}})
	v := Verdict{}
	if queued {
		v = <-done // fd is lent: wait for the worker, whose ctx ends at the deadline
	} else {
		o := t.policy.Load().overload()
		v = Verdict{Decision: o.decision.String(), Reason: o.reason, Detail: "the tenant's queue is full"}
	}
	v.Tenant, v.Size, v.Took = t.name, size, time.Since(began)
	return v, nil
}
