// Command assay-keeper holds the containers' fanotify groups, so that they stay
// guarded while the agent is away. It owns its flags, its log and its limits; package
// keeper does the work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/keeper"
)

// The exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// defaultSocket is beside the agent's.
const defaultSocket = "/run/assay/keeper.sock"

// version is set by the linker (-X main.version=…).
var version = "devel"

const help = `Usage: assay-keeper [--socket PATH] [--until-idle]

Holds a second descriptor of each guarded container's fanotify group while the agent
(assayd) works. When the agent is gone, openers wait for the next one, which takes
everything over; after a tenant's grace time they are answered by its fallback. An
agent that has not been heard of for the shortest grace time is killed.

assayd starts a keeper if none is there. Let systemd start it instead
(assay-keeper.service), so that it does not end with the agent's service.

  --socket PATH   listen here (default ` + defaultSocket + `)
  --until-idle    end when there is neither an agent nor a guarded container
  --version       print the version
  --help          print this text

Ending the keeper (SIGTERM) while the agent works costs nothing: the agent starts or
finds another. Ending it while there is no agent leaves the containers unguarded.

Exit codes: 0 ended as asked, 1 failed, 2 wrong usage.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes a command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("assay-keeper", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", defaultSocket, "")
	untilIdle := flags.Bool("until-idle", false, "")
	showVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprint(stdout, help)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err == nil && !filepath.IsAbs(*socket):
		err = fmt.Errorf("--socket %q is not an absolute path", *socket)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "assay-keeper: %v (see assay-keeper --help)\n", err)
		return exitUsage
	}
	if *showVersion {
		_, _ = fmt.Fprintln(stdout, "assay-keeper", version)
		return 0
	}
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("program", "assay-keeper")
	if err := serve(*socket, keeper.Options{Logger: log, UntilIdle: *untilIdle, Version: version}); err != nil {
		_, _ = fmt.Fprintf(stderr, "assay-keeper: %v\n", err)
		return exitFailed
	}
	return 0
}

// serve runs the keeper until it is told to stop.
func serve(socket string, o keeper.Options) error {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it serves root alone, and kills an agent that is stuck")
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE) // of a terminal or log that ends before us
	raiseLimit(o.Logger)
	ln, err := keeper.Listen(socket)
	if err != nil {
		return err
	}
	o.Logger.Info("keeping", "version", version, "socket", socket)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		o.Logger.Warn("systemd could not be notified", "error", err)
	}
	return keeper.NewServer(o).Serve(ctx, ln)
}

// raiseLimit raises the limit of descriptors as far as it goes: each group, process
// and lease is one.
func raiseLimit(log *slog.Logger) {
	var files unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	if err == nil {
		files.Cur = files.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	}
	if err != nil {
		log.Warn("the limit of descriptors cannot be raised", "error", err)
	}
}
