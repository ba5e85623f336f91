package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

// reload puts the configuration file in force as it is now, or changes nothing
// and keeps the reason for the status.
func (a *agent) reload() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		a.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
	}
	defer a.notify(daemon.SdNotifyReady)
	err := a.replace()
	a.mu.Lock()
	a.reloadErr = err
	a.mu.Unlock()
	if err != nil {
		a.log.Error("reload: nothing changed", "error", err)
		return
	}
	a.log.Info("reloaded", "config", nameOf(a.file), "hash", a.configuration().Hash())
}

// replace is all or nothing: everything that can fail comes before the first
// change.
func (a *agent) replace() error {
	next, err := load(a.file)
	if err != nil {
		return err
	}
	current := a.configuration()
	if keys := current.RestartNeeded(next); len(keys) > 0 {
		return fmt.Errorf("%s cannot change while the agent runs (restart it, or put the old values back)", strings.Join(keys, ", "))
	}
	kept, wanted := a.split(current, next)
	built, err := scanners.Build(wanted, a.log)
	if err != nil {
		return err
	}
	all := maps.Clone(kept)
	maps.Copy(all, built)
	a.swap(next, all)
	return nil
}

// split tells the running scanners whose configuration did not change from those
// that must be built.
func (a *agent) split(current, next *tenant.Config) (kept map[string]scanner.Named, wanted []tenant.Scanner) {
	kept = make(map[string]scanner.Named)
	for _, s := range next.Scanners {
		if slices.ContainsFunc(current.Scanners, func(old tenant.Scanner) bool { return reflect.DeepEqual(old, s) }) {
			kept[s.Name] = a.scanners[s.Name]
			continue
		}
		wanted = append(wanted, s)
	}
	return kept, wanted
}

// swap puts next in force, and closes the scanners it no longer has once their
// last scan is through.
func (a *agent) swap(next *tenant.Config, all map[string]scanner.Named) {
	drained := a.guard.Apply(next, all)
	a.mu.Lock()
	gone := maps.Clone(a.scanners)
	maps.DeleteFunc(gone, func(name string, s scanner.Named) bool { return all[name].Scanner == s.Scanner })
	a.scanners, a.config = all, next
	a.budget.scanners = connections(next.Scanners)
	a.mu.Unlock()
	a.watch.kernel.retune(next)
	a.sayLimits()
	a.draining.Go(func() {
		drained()
		if err := scanners.Close(gone); err != nil {
			a.log.Warn("scanners that were replaced did not close", "error", err)
		}
	})
}

// configuration is the one in force.
func (a *agent) configuration() *tenant.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config
}
