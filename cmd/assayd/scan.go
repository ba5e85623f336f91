package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/ahead"
	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/scanner"
)

// telling is the least time between two lines of progress.
const telling = 250 * time.Millisecond

// Scan scans the layers that a request names, one after another.
func (a *agent) Scan(ctx context.Context, req api.ScanRequest, emit func(api.ScanLine) error) (api.ScanTotals, error) {
	layers, err := a.layersOf(req)
	if err != nil {
		return api.ScanTotals{}, err
	}
	s := &layerScan{emit: emit, began: time.Now(), total: len(layers)}
	for _, l := range layers {
		s.label = nameOfLayer(l)
		err := a.guard.ScanLayer(ctx, req.Tenant, l, s)
		switch {
		case errors.Is(err, guard.ErrNoTenant):
			return api.ScanTotals{}, noTenant(err)
		case ctx.Err() != nil:
			return s.totals, ctx.Err()
		case s.err != nil:
			return s.totals, s.err
		case err != nil:
			s.totals.Errors++
			s.say(api.ScanLine{Error: &api.ScanError{Layer: s.label, Error: err.Error()}})
		}
		s.totals.Layers++
		s.progress(true)
	}
	s.totals.Micros = time.Since(s.began).Microseconds()
	return s.totals, s.err
}

// layersOf finds the layers on this host, topmost first.
func (a *agent) layersOf(req api.ScanRequest) ([]layer.Directory, error) {
	var layers []layer.Directory
	var err error
	switch {
	case req.Kind == api.ScanImage:
		layers, err = a.image(req.Name)
	case strings.HasPrefix(req.Name, "/"):
		var l layer.Directory
		l, err = a.memory.Host.Locate(req.Name)
		for _, used := range a.guard.LayersInUse() {
			if used.Dir == l.Dir { // by its digest, if it is known
				l = used
			}
		}
		layers = []layer.Directory{l}
	default:
		layers, err = a.layerByDigest(req.Name)
	}
	if err != nil {
		return nil, refused(http.StatusNotFound, err,
			"name an image of podman's storage, or a layer's diff id or directory; `assay verdicts` lists the layers that are known")
	}
	return layers, nil
}

func (a *agent) layerByDigest(digest string) ([]layer.Directory, error) {
	for _, used := range a.guard.LayersInUse() {
		if used.Digest == digest {
			return []layer.Directory{used}, nil
		}
	}
	problem := fmt.Errorf("%w: %s", layer.ErrUnknownLayer, digest)
	for _, root := range a.memory.storage.Roots() {
		found, err := a.memory.storage.LayersByDigest(root, digest)
		if err == nil {
			return found[:1], nil // the same content, wherever it was unpacked
		}
		problem = errors.Join(problem, unlessMissing(err))
	}
	return nil, problem
}

// image finds an image in the storages, by its full name or as people shorten it.
func (a *agent) image(name string) ([]layer.Directory, error) {
	problem := fmt.Errorf("%w: %q", layer.ErrUnknownImage, name)
	for _, root := range a.memory.storage.Roots() {
		for _, full := range fullNames(name) {
			layers, err := a.memory.storage.Image(root, full)
			if err == nil {
				return layers, nil
			}
			problem = errors.Join(problem, unlessMissing(err))
		}
	}
	return nil, problem
}

// fullNames lists what a short name of an image can stand for.
func fullNames(name string) []string {
	names := []string{name}
	tagged := name
	if !strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		tagged += ":latest"
		names = append(names, tagged)
	}
	return append(names, "localhost/"+tagged, "docker.io/library/"+tagged, "docker.io/"+tagged)
}

// unlessMissing leaves out that something is not where it was looked for.
func unlessMissing(err error) error {
	if errors.Is(err, layer.ErrUnknownImage) || errors.Is(err, layer.ErrUnknownLayer) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func nameOfLayer(l layer.Directory) string {
	if l.Digest != "" {
		return l.Digest
	}
	return l.Path
}

// A layerScan tells the client how a scan goes.
type layerScan struct {
	emit   func(api.ScanLine) error
	err    error // the client is gone
	began  time.Time
	told   time.Time
	total  int
	label  string
	files  int64 // found
	totals api.ScanTotals
}

// Found implements [ahead.Watcher].
func (s *layerScan) Found(files int) {
	s.files += int64(files)
	s.progress(true)
}

// Ready implements [ahead.Watcher]: whoever asks for a scan waits for it, so it does
// not hold back.
func (s *layerScan) Ready(ctx context.Context, _ *ahead.Job) error {
	return errors.Join(ctx.Err(), s.err)
}

// Did implements [ahead.Watcher].
func (s *layerScan) Did(f *ahead.File, r ahead.Result) {
	s.totals.Files++
	s.totals.Bytes += f.Size
	switch r {
	case ahead.Known:
		s.totals.Cached++
	case ahead.Failed:
		s.totals.Errors++
	case ahead.Unscannable:
		s.totals.Unscannable++
	case ahead.Skipped, ahead.Clean, ahead.Malicious:
	}
	s.progress(false)
}

// Finding implements [guard.LayerWatcher].
func (s *layerScan) Finding(f guard.AheadFinding) {
	v := f.Result.Verdict
	line := &api.ScanFinding{
		Layer: s.label, Path: f.Path, Size: f.Size, Verdict: v.Outcome.String(), Detail: guard.VerdictDetail(v),
		Scanners: guard.ScannerRecords(f.Result.Reports),
	}
	switch v.Outcome {
	case scanner.Malicious:
		s.totals.Malicious++
		s.say(api.ScanLine{Finding: line})
	case scanner.Unscannable:
		s.say(api.ScanLine{Unscannable: line})
	case scanner.Error, scanner.Clean:
		s.say(api.ScanLine{Error: &api.ScanError{Layer: s.label, Path: f.Path, Error: line.Detail}})
	}
}

// progress tells how far the scan is, if it is time to.
func (s *layerScan) progress(now bool) {
	if !now && time.Since(s.told) < telling {
		return
	}
	s.told = time.Now()
	s.say(api.ScanLine{Progress: &api.ScanProgress{
		Layers: s.total, LayersDone: s.totals.Layers, Files: s.files, FilesDone: s.totals.Files,
		Bytes: s.totals.Bytes, BytesDone: s.totals.Bytes, Cached: s.totals.Cached, Current: s.label,
	}})
}

func (s *layerScan) say(line api.ScanLine) {
	if s.err == nil {
		s.err = s.emit(line)
	}
}
