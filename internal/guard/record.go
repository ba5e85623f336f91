package guard

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/scanner"
)

// Where a decision came from, as in records.
const (
	sourceKernel    = "kernel"    // the kernel answered by itself
	sourceCache     = "cache"     // every verdict that was needed was known
	sourceCoalesced = "coalesced" // another opener's scan of the same file
	sourceScan      = "scan"      // scanners were asked for this event
	sourcePolicy    = "policy"    // the tenant's policy, without a verdict
)

// A subject is who opens what, for records. All of it but pid is untrusted.
type subject struct {
	path string
	pid  int
	exe  string
}

// subjectOf describes the opener tid and the file behind fd.
func subjectOf(fd, tid int) subject {
	return subject{path: hintOf(fd), pid: tgid(tid), exe: exeOf(tid)}
}

// exeOf returns the executable of a thread, or "".
func exeOf(tid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", tid))
	if err != nil {
		return ""
	}
	return exe
}

// tgid returns the process that a thread belongs to, or tid itself where it can
// no longer be told.
func tgid(tid int) int {
	fd, err := unix.Open("/proc/"+strconv.Itoa(tid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tid
	}
	defer unix.Close(fd)
	var head [512]byte // Tgid is the fourth line, after a name of at most 64 bytes
	n, err := unix.Read(fd, head[:])
	if err != nil {
		return tid
	}
	_, after, found := strings.Cut(string(head[:n]), "\nTgid:")
	value, _, _ := strings.Cut(after, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(value))
	if !found || err != nil {
		return tid
	}
	return pid
}

// named is how records name the container.
func (c *container) named() audit.Container { return c.guard.named(&c.info) }

// named is how records name an announced container: with the labels that the
// configuration chooses, of the pod if they are known.
func (g *Guard) named(a *announce.Container) audit.Container {
	n := audit.Container{
		ID: a.ID, Name: a.Name, Pod: a.Pod, Namespace: a.Namespace, Image: a.Image, ImageDigest: a.ImageDigest,
	}
	for _, key := range *g.recordLabels.Load() {
		value, ok := a.PodLabels[key]
		if !ok {
			value, ok = a.Labels[key]
		}
		if !ok {
			continue
		}
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[key] = value
	}
	return n
}

// record describes an answered event.
func (k *task) record(o outcome, a account, took time.Duration) audit.Record {
	rec := audit.Record{
		Time: k.began, Tenant: k.pool.name, Container: k.c.named(),
		Op: k.file.Op.String(), Path: k.subject.path, PID: k.subject.pid, Exe: k.subject.exe,
		File:     audit.File{Size: k.file.Size},
		Decision: o.decision.String(), Source: sourcePolicy, Reason: o.reason, Detail: a.detail,
		Micros: took.Microseconds(),
	}
	if from := k.origin.Load(); from != nil {
		rec.File.Identity, rec.File.Layer, rec.File.Pristine = from.identity, from.layer, from.pristine
	}
	if r := a.result; len(r.Reports) > 0 {
		rec.Source = sourceScan
		rec.Verdict = r.Verdict.Outcome.String()
		rec.Mark = r.Verdict.Mark
		rec.Scanners = ScannerRecords(r.Reports)
	}
	if a.source != "" {
		rec.Source = a.source
	}
	if a.detail == "" {
		rec.Detail = VerdictDetail(a.result.Verdict)
	}
	return rec
}

// ScannerRecords describes what each scanner contributed, as it stands in
// records.
func ScannerRecords(reports []scanner.Report) []audit.Scanner {
	records := make([]audit.Scanner, 0, len(reports))
	for _, rep := range reports {
		v := rep.Verdict
		records = append(records, audit.Scanner{
			Name: rep.Name, Generation: string(v.Generation), Verdict: v.Outcome.String(),
			Signature: v.Signature, Detail: VerdictDetail(v), Micros: rep.Micros,
		})
	}
	return records
}

// VerdictDetail says in words what a verdict without a signature is about.
func VerdictDetail(v scanner.Verdict) string {
	switch v.Outcome {
	case scanner.Unscannable:
		return string(v.Reason)
	case scanner.Error:
		if v.Err == nil {
			return ""
		}
		if errors.Is(v.Err, errDeadline) {
			return errDeadline.Error()
		}
		return v.Err.Error()
	case scanner.Clean, scanner.Malicious:
	}
	return ""
}
