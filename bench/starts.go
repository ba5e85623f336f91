package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// benchStarts measures a whole `runc run` of a container that does nothing, with
// and without the hook, in turn, under a running agent with its built-in scanner.
func benchStarts(scratch, bin string, starts int) error {
	socket := filepath.Join(scratch, "agent.sock")
	stop, err := startAgent(scratch, bin, socket)
	if err != nil {
		return err
	}
	defer stop()
	hook := &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: filepath.Join(bin, "assay-hook"),
		Args: []string{"assay-hook", "--socket", socket, "createRuntime"},
	}}}
	plain, err := bundle(scratch, "plain", nil)
	if err != nil {
		return err
	}
	gated, err := bundle(scratch, "gated", hook)
	if err != nil {
		return err
	}
	var without, with, added []float64
	for i := range starts + 2 {
		a, err := runcRun(scratch, plain, fmt.Sprint("assay-bench-plain-", i))
		if err != nil {
			return err
		}
		b, err := runcRun(scratch, gated, fmt.Sprint("assay-bench-gated-", i))
		if err != nil {
			return err
		}
		if i >= 2 { // the first two warm up
			without, with, added = append(without, a), append(with, b), append(added, b-a)
		}
	}
	slices.Sort(added)
	fmt.Printf("\n`runc run` of a container that does nothing, ms, median of %d starts each\n", starts)
	fmt.Printf("%10s %10s %18s %8s\n", "no hook", "hook", "added (median)", "p90")
	fmt.Printf("%10.1f %10.1f %18.1f %8.1f\n", median(without), median(with), median(added), added[len(added)*9/10])
	fmt.Println("\nhook: assay-hook at createRuntime, assayd with its built-in scanner, the scan of the container's program included")
	return nil
}

func startAgent(scratch, bin, socket string) (stop func(), err error) {
	config := filepath.Join(scratch, "assay.yaml")
	if err := os.WriteFile(config, []byte("socket: "+socket+"\nstate: "+scratch+"/state\n"), 0o600); err != nil {
		return nil, err
	}
	c := exec.Command(filepath.Join(bin, "assayd"), "--config", config, "--log-level", "error")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("%w (make build)", err)
	}
	stop = func() {
		_ = c.Process.Signal(unix.SIGTERM)
		_ = c.Wait()
	}
	look, patience := time.NewTicker(5*time.Millisecond), time.After(10*time.Second)
	defer look.Stop()
	for waiting := true; waiting; {
		select {
		case <-look.C:
			if _, err := os.Stat(socket); err == nil {
				return stop, nil
			}
		case <-patience:
			waiting = false
		}
	}
	stop()
	return nil, fmt.Errorf("the agent did not open %s", socket)
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
