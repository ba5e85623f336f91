package main

import (
	"context"
	"fmt"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/scannertest"
)

// agent is the role of the agent: the real readers, guard and records, with a
// scanner that calls everything clean. Each mount is the root of one container.
// It says "ready" and runs until it is killed.
func agent(mounts []string) error {
	readers, err := fanotify.Start(fanotify.DefaultReaders())
	if err != nil {
		return err
	}
	records, err := audit.NewLog(audit.Options{})
	if err != nil {
		return err
	}
	cfg := tenant.Default()
	always := map[string]scanner.Named{}
	for _, s := range cfg.Scanners {
		always[s.Name] = scanner.Named{Name: s.Name, Scanner: scannertest.Always(scanner.CleanVerdict("bench"))}
	}
	g := guard.New(guard.Options{Readers: readers, Records: records}, cfg, always)
	for i, m := range mounts {
		init, err := initProcess()
		if err != nil {
			return err
		}
		c := announce.Container{ID: fmt.Sprint("bench", i), PID: init.Process.Pid, Rootfs: m}
		if _, err := g.Announce(context.Background(), c); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}
