package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// benchStarts measures a whole `runc run` of a container that does nothing, with
// and without the hook, in turn, under a running agent with its built-in scanner.
func (b *bench) benchStarts() error {
	scratch, bin := b.scratch, b.bin
	a, err := b.newAssayd(guardConfig{scanner: "hashlist: {}", kernelMarks: "layers"})
	if err != nil {
		return err
	}
	defer a.stop()
	hook := &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: filepath.Join(bin, "assay-hook"),
		Args: []string{"assay-hook", "--socket", a.socket, "createRuntime"},
	}}}
	plain, err := bundle(scratch, "plain", nil)
	if err != nil {
		return err
	}
	gated, err := bundle(scratch, "gated", hook)
	if err != nil {
		return err
	}
	t := b.report.add("starts", "`runc run` of a container that does nothing", fmt.Sprintf("ms, %d starts each", b.starts))
	for i := range b.starts + 2 {
		without, err := runcRun(scratch, plain, fmt.Sprint("assay-bench-plain-", i))
		if err != nil {
			return err
		}
		with, err := runcRun(scratch, gated, fmt.Sprint("assay-bench-gated-", i))
		if err != nil {
			return err
		}
		if i >= 2 { // the first two warm up
			t.sample("no hook", without)
			t.sample("hook", with)
			t.sample("added", with-without)
		}
	}
	t.compare("hook", "no hook", nil)
	t.note("hook: assay-hook at createRuntime, assayd with its built-in scanner, the scan of the container's program included")
	t.print()
	return nil
}

// bundle makes an OCI bundle on an overlay of its own whose only program is a
// static busybox.
func bundle(scratch, name string, hooks *specs.Hooks) (string, error) {
	dir := filepath.Join(scratch, name)
	layer := filepath.Join(dir, "layer")
	for _, d := range []string{filepath.Join(layer, "bin"), filepath.Join(layer, "proc"), filepath.Join(dir, "rootfs"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(layer, "bin/busybox"), busybox, 0o755); err != nil {
		return "", err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", layer, dir, dir)
	if err := unix.Mount("overlay", filepath.Join(dir, "rootfs"), "overlay", 0, options); err != nil {
		return "", err
	}
	spec := exec.Command("runc", "spec", "--bundle", dir)
	if out, err := spec.CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc spec: %w: %s", err, out)
	}
	return dir, editSpec(filepath.Join(dir, "config.json"), hooks)
}

func editSpec(file string, hooks *specs.Hooks) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/bin/busybox", "true"}
	spec.Process.Rlimits = nil
	spec.Hooks = hooks
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// runcRun runs the bundle to its end and returns the milliseconds it took.
func runcRun(scratch, dir, id string) (float64, error) {
	c := exec.Command("runc", "--root", filepath.Join(scratch, "runc"), "run", "--bundle", dir, id)
	began := time.Now()
	if out, err := c.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("runc run: %w: %s", err, out)
	}
	return time.Since(began).Seconds() * 1e3, nil
}
