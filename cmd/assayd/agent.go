package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/api"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/containerd"
	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/nri"
	"github.com/assay-project/assay/scanner"
)

// stopPatience is how long the agent waits for scanners when it stops; whoever
// waits for an answer gets it at once.
const stopPatience = 5 * time.Second

// options are what serve needs.
type options struct {
	file    string
	config  *tenant.Config
	readers int
	log     *slog.Logger
}

// An agent is the running process.
type agent struct {
	options
	started time.Time
	records *audit.Log
	readers *fanotify.Readers
	guard   *guard.Guard
	plugin  *nri.Plugin // nil if it is off
	keeper  *link
	taken   guard.TakeOver
	memory  *memory
	// containerd is asked about its containers.
	containerd *containerd.Client
	life       context.Context //nolint:containedctx // the agent's, for what a request begins and does not end
	watch      *watchdog
	budget     budget
	hangups    chan os.Signal // each asks for a reload

	mu        sync.Mutex // guards what a reload replaces
	scanners  map[string]scanner.Named
	reloadErr error
	draining  sync.WaitGroup // scanners that wait for their last scan
}

// serve runs the agent until ctx is done.
func serve(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("permission marks need root (run it as root, or as a service)")
	}
	bounds := newBudget(raiseLimits(o.log), o.readers, o.config.Scanners)
	a := &agent{options: o, started: time.Now(), budget: bounds, hangups: make(chan os.Signal, 1)}
	// First of all: a SIGHUP that nobody waits for ends the process.
	signal.Notify(a.hangups, unix.SIGHUP)
	defer signal.Stop(a.hangups)
	// The socket's lock is what makes this the only agent: containers may be taken over.
	ln, err := api.Listen(o.config.Socket) //nolint:contextcheck // its life ends with Shutdown
	if err != nil {
		return err
	}
	defer ln.Close()
	if a.scanners, err = scanners.Build(o.config.Scanners, o.log); err != nil {
		return err
	}
	defer a.closeScanners()
	a.records, err = audit.NewLog(audit.Options{ //nolint:contextcheck // its life ends with Close
		File: o.config.Records.File, MaxSize: o.config.Records.MaxSize, KeepFiles: o.config.Records.Keep, Logger: o.log,
		Tally: filepath.Join(filepath.Dir(o.config.Socket), "records.tally"),
	})
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	defer a.closeRecords(context.WithoutCancel(ctx))
	if a.readers, err = fanotify.Start(o.readers); err != nil {
		return err
	}
	defer a.readers.Stop()
	if a.memory, err = openMemory(ctx, o.config, bounds.marks, o.readers, o.log); err != nil {
		return err
	}
	defer a.closeMemory(context.WithoutCancel(ctx))
	if err := a.openContainerd(); err != nil {
		return err
	}
	defer a.closeContainerd()
	a.keeper = newLink(o.config, bounds.descriptors, o.log)
	defer a.keeper.close()
	a.guard = guard.New(guard.Options{ //nolint:contextcheck // its life ends with Close
		Readers: a.readers, Records: a.records, Logger: o.log, MaxHeld: bounds.held, Memory: &a.memory.Memory,
		Keeper: a.keeper, Complete: a.complete,
	}, o.config, a.scanners)
	defer a.unguard(context.WithoutCancel(ctx))
	kernel := watchKernel(o.config, o.log) // before marks are placed
	defer kernel.close()
	a.watch = &watchdog{readers: a.readers, tenants: a.guard.Look, kernel: kernel, log: o.log}
	a.sayLimits()
	a.takeOver(ctx)
	beating, stop := context.WithCancel(ctx)
	defer stop()
	go a.keeper.run(beating, beatEvery(o.config), a.watch.answering, a.guard.KeepAnew)
	defer a.attach(ctx)()
	return a.listen(ctx, ln)
}

// listen serves the socket, and everything that comes from outside meanwhile.
// When it returns, nothing new is admitted.
func (a *agent) listen(ctx context.Context, ln *api.Listener) error {
	server := api.NewServer(a, a.log)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	a.log.Info("guarding", "version", version, "socket", a.config.Socket, "config", nameOf(a.file),
		"tenants", len(a.config.Tenants), "readers", a.readers.Len())
	a.notify(daemon.SdNotifyReady)
	err := a.attend(ctx, served)
	a.notify(daemon.SdNotifyStopping)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	return errors.Join(err, server.Shutdown(stopping))
}

// attend handles signals and the watchdog until ctx is done or the server fails.
func (a *agent) attend(ctx context.Context, served <-chan error) error {
	feed := time.NewTicker(a.watch.interval())
	defer feed.Stop()
	for {
		select {
		case <-ctx.Done():
			a.log.Info("stopping")
			return nil
		case err := <-served:
			return fmt.Errorf("socket: %w", err)
		case err := <-a.readers.Failed():
			a.log.Error("events cannot be answered: the agent ends, so that nobody waits for it", "error", err)
			return err
		case <-a.hangups:
			a.reload() //nolint:contextcheck // the containers' lives bound what it does to them
		case <-feed.C:
			if a.watch.look() {
				a.notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}

// takeOver guards the containers of the last agent.
func (a *agent) takeOver(ctx context.Context) {
	absence, entries, err := a.keeper.connect(ctx)
	if err != nil { // said, and tried again
		absence.Limit = a.keeper.limit
	}
	entries = append(entries, a.keeper.roster.missing(entries)...)
	if len(entries) == 0 {
		return
	}
	t := a.guard.Adopt(entries, absence) //nolint:contextcheck // the containers' lives bound it
	a.log.Info("took over", "containers", t.Containers, "ended", t.Gone, "took", t.Took,
		"answeredByKeeper", t.Answered, "answeredForAgent", t.Settled, "lastAgent", t.Why)
	if len(t.Unguarded) > 0 {
		a.log.Error("containers ran without a gate, because keeper and agent had both ended; they are guarded again, and whatever was opened meanwhile was not scanned",
			"containers", t.Unguarded, "remedy", "restart those that you do not trust")
	}
	a.taken = t
}

// unguard answers whoever waits, and leaves the containers to the keeper, if there is
// one, or gives them up.
func (a *agent) unguard(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if a.keeper.connected() {
		// A disk can be slow, and from the next line on openers wait for the next agent.
		a.memory.closeStore(ctx, a.log)
		a.readers.Stop() // what comes from now on is for the next agent
		n := a.guard.HandOver(ctx)
		a.log.Info("containers are left to the keeper", "containers", n)
		return
	}
	if n := a.guard.Close(ctx); n > 0 {
		a.log.Warn("containers go on unguarded: their marks ended with the agent", "containers", n,
			"remedy", "restart them once the agent is back")
	}
}

func (a *agent) closeRecords(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := a.records.Close(ctx); err != nil {
		a.log.Error("the last records could not be written", "error", err)
	}
}

func (a *agent) closeMemory(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	a.memory.close(ctx, a.log)
}

func (a *agent) closeScanners() {
	drained := make(chan struct{})
	go func() {
		a.draining.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(stopPatience):
		a.log.Warn("scanners that a reload replaced are still at work")
	}
	if err := scanners.Close(a.scanners); err != nil {
		a.log.Warn("scanners did not close", "error", err)
	}
}
