package main

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/layer"
)

// Explain tells what is known of a container's file.
func (a *agent) Explain(ctx context.Context, word, path string) (api.Explanation, error) {
	c, err := api.FindContainer(a.containerStatus(a.guard.Containers()), word)
	if err != nil {
		return api.Explanation{}, err
	}
	e, err := a.guard.Explain(ctx, c.ID, path)
	switch {
	case errors.Is(err, guard.ErrNoFile):
		return api.Explanation{}, refused(http.StatusNotFound, err, "name the file as the container sees it")
	case err != nil:
		return api.Explanation{}, refused(http.StatusNotFound, err, "`assay status` lists the containers that are guarded")
	}
	out := api.Explanation{
		Container: api.ExplainedContainer{
			ID: c.ID, Name: c.Name, Namespace: c.Namespace, Pod: c.Pod, Image: e.Image, PID: c.PID, Since: c.Since,
		},
		Policy: explainedPolicy(c.Tenant, &e), File: explainedFile(path, &e), Layer: explainedLayer(&e),
		Scanners: explainedScanners(&e), Mark: explainedMark(&e), Open: predicted(&e.Open), Exec: predicted(&e.Exec),
	}
	if e.Why != nil {
		out.Notes = append(out.Notes, "where the file comes from could not be found out: "+e.Why.Error())
	}
	return out, nil
}

func explainedPolicy(name string, e *guard.Explanation) api.ExplainedPolicy {
	p := &e.Policy
	var on []string
	if p.OnOpen {
		on = append(on, "open")
	}
	if p.OnExec {
		on = append(on, "exec")
	}
	return api.ExplainedPolicy{
		Tenant: name, Mode: string(p.Mode), On: on, KernelMarks: string(p.KernelMarks), MaxSize: p.MaxSize,
		OnError: string(p.OnError), OnTimeout: string(p.OnTimeout),
		OnUnscannable: string(p.OnUnscannable), OnTooLarge: string(p.OnTooLarge),
	}
}

func explainedFile(path string, e *guard.Explanation) api.ExplainedFile {
	m := e.Mount
	return api.ExplainedFile{
		Path: path, Type: fileType(e.Mode), Size: e.Size, Identity: e.Identity.String(),
		Mount: api.Mark{Destination: m.Destination, FSType: m.FSType, Kind: string(m.Kind), Why: m.Why},
	}
}

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

func explainedLayer(e *guard.Explanation) api.ExplainedLayer {
	return api.ExplainedLayer{
		Pristine: e.Origin.Reason == layer.Pristine, Digest: e.Origin.Layer.Digest, Directory: e.Dir,
		Depth: e.Origin.Depth, Reason: e.Origin.Reason.String(),
	}
}

func explainedScanners(e *guard.Explanation) []api.ExplainedScanner {
	var list []api.ExplainedScanner
	for _, s := range e.Scanners {
		one := api.ExplainedScanner{Name: s.Name, Stage: s.Stage, Generation: string(s.Generation)}
		for i, k := range s.Known {
			one.Verdicts = append(one.Verdicts, api.KnownVerdict{
				Verdict: k.Verdict.Outcome.String(), Signature: k.Verdict.Signature, Generation: string(k.Verdict.Generation),
				Current: s.Current[i], Scope: s.Kind.String(),
			})
		}
		list = append(list, one)
	}
	return list
}

func explainedMark(e *guard.Explanation) api.ExplainedMark {
	switch {
	case e.Marked && e.Leased:
		return api.ExplainedMark{State: api.MarkPlaced, Lease: api.LeaseHeld, Since: e.Since}
	case e.Marked:
		return api.ExplainedMark{
			State: api.MarkPlaced, Lease: api.LeaseNone, Since: e.Since,
			Why: "no lease is needed: nothing in the container can change its root filesystem",
		}
	}
	return api.ExplainedMark{State: api.MarkNone, Lease: api.LeaseNone, Why: e.WhyUnmarked()}
}

func predicted(p *guard.Prediction) api.Prediction {
	if p.Scan {
		return api.Prediction{Answer: api.AnswerScan, Scanners: p.Scanners}
	}
	decision := "deny"
	if p.Decision == fanotify.Allow {
		decision = "allow"
	}
	return api.Prediction{Answer: api.AnswerAtOnce, Decision: decision, Source: p.Source, Reason: p.Reason.String(), Scanners: p.Scanners}
}
