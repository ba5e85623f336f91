package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// buildPatience bounds one build.
const buildPatience = 5 * time.Minute

// A builder builds bench/workload in containers.
type builder struct {
	*bench
	layers []string
	round  int
}

// benchBuild measures a Go build in a container: the compiler and the library in the
// lower layer, the module in another, everything that the build writes in the upper
// directory.
func (b *bench) benchBuild() error {
	if err := b.needClamd(); err != nil {
		return err
	}
	builder, err := b.newBuilder()
	if err != nil {
		return err
	}
	var end stack
	defer end.run()
	plain, err := b.newContainer(builder.layers...)
	if err != nil {
		return err
	}
	end.push(plain.close)
	known := map[string]*container{"unguarded": plain}
	agents := map[string]*assayd{}
	for key, marks := range map[string]string{"cached": "off", "kernel-marked": "layers"} {
		c, err := b.newContainer(builder.layers...)
		if err != nil {
			return err
		}
		end.push(c.close)
		if err := b.watchByAgent(c, &end, guardConfig{kernelMarks: marks}); err != nil {
			return err
		}
		known[key], agents[key] = c, end.agent
	}
	for key, c := range known { // the first build is not measured
		if _, err := builder.build(c); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	t := b.report.add("build", "Go build of a small program and the library that it needs, in a container", fmt.Sprintf("seconds, %d rounds", b.builds))
	for range b.builds {
		if err := builder.rounds(t, known); err != nil {
			return err
		}
	}
	for _, key := range []string{"cold", "cached", "kernel-marked"} {
		t.compare(key, "unguarded", nil)
	}
	t.note("cold: fresh agent, fresh container; the others: a container that has built before, with a new build cache")
	t.print()
	for key, a := range agents {
		if err := a.sound(); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// rounds measures one build of each variant.
func (b *builder) rounds(t *table, known map[string]*container) error {
	for _, key := range []string{"unguarded", "cold", "cached", "kernel-marked"} {
		seconds, err := b.build1(key, known[key])
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		t.sample(key, seconds)
	}
	return nil
}

// build1 builds in a container that is known, or else in a new one with a new agent.
func (b *builder) build1(key string, c *container) (float64, error) {
	if c != nil {
		return b.build(c)
	}
	var end stack
	defer end.run()
	c, err := b.newContainer(b.layers...)
	if err != nil {
		return 0, err
	}
	end.push(c.close)
	if err := b.watchByAgent(c, &end, guardConfig{kernelMarks: "layers"}); err != nil {
		return 0, err
	}
	seconds, err := b.build(c)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", key, err)
	}
	return seconds, end.agent.sound()
}

// newBuilder makes the layers: Go as it is installed, and the module.
func (b *bench) newBuilder() (*builder, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	layer := filepath.Join(b.scratch, "module")
	if err := os.MkdirAll(filepath.Join(layer, "tmp"), 0o755); err != nil {
		return nil, err
	}
	if err := os.CopyFS(filepath.Join(layer, "workload"), os.DirFS("bench/workload")); err != nil {
		return nil, err
	}
	return &builder{bench: b, layers: []string{layer, strings.TrimSpace(string(out))}}, nil
}

// build builds with an empty build cache and returns the seconds it took.
func (b *builder) build(c *container) (float64, error) {
	b.round++
	ctx, cancel := context.WithTimeout(context.Background(), buildPatience)
	defer cancel()
	cache := filepath.Join(c.root, fmt.Sprint("cache", b.round))
	defer os.RemoveAll(cache)
	p := inMountsOf(ctx, c.pid, filepath.Join(c.root, "bin/go"),
		"build", "-C", filepath.Join(c.root, "workload"), "-o", filepath.Join(c.root, "tmp/workload"), ".")
	p.Env = []string{
		"PATH=/usr/bin:/bin", "GOROOT=" + c.root, "GOCACHE=" + cache, "TMPDIR=" + filepath.Join(c.root, "tmp"),
		"HOME=" + filepath.Join(c.root, "tmp"), "GOPATH=" + filepath.Join(c.root, "tmp/gopath"),
		"GOFLAGS=-mod=mod", "GOPROXY=off", "GOTOOLCHAIN=local", "GOENV=off", "GOTELEMETRY=off", "GOWORK=off", "CGO_ENABLED=0",
	}
	began := time.Now()
	if err := p.Run(); err != nil {
		return 0, fmt.Errorf("go build: %w", err)
	}
	return time.Since(began).Seconds(), nil
}
