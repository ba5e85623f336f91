// Command assayd is the node agent. It wires the rooms together: configuration,
// scanners, records, event readers, the guard and the socket; and it owns the
// process: flags, limits, signals, systemd. It must not own anything that an
// event meets on its way, which is internal/guard's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/tenant"
)

// version is what "make build" says was built; set by the linker.
var version = "devel"

// defaultConfig is read if it exists and no other file is named.
const defaultConfig = "/etc/assay/assay.yaml"

// The exit codes.
const (
	exitFailed = 1 // the agent could not start or ended with an error
	exitUsage  = 2 // the command line or the configuration is wrong
)

// errInvalid says that the command line or configuration is wrong, after the
// problems were printed.
var errInvalid = errors.New("invalid")

func main() { os.Exit(run(os.Args, os.Stderr)) }

// run executes a command line and returns the exit code.
func run(args []string, stderr io.Writer) int {
	err := app(stderr).Run(args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInvalid):
		return exitUsage
	}
	_, _ = fmt.Fprintf(stderr, "assayd: %v\n", err)
	return exitFailed
}

func app(stderr io.Writer) *cli.App {
	return &cli.App{
		Name:      "assayd",
		Usage:     "guard the containers of this node: nothing is opened or executed before it was scanned",
		UsageText: "assayd [--config FILE] [--check]",
		Description: `Runs in the foreground, as root, until SIGTERM. SIGHUP reloads the configuration:
a file that is not valid changes nothing, and "assay status" says why.

Without --config, ` + defaultConfig + ` is read if it exists; otherwise one tenant
guards everything with the built-in scanner (EICAR).

Examples:
  assayd --config assay.yaml --check      is this file valid?
  assayd --config assay.yaml              run
  kill -HUP $(pidof assayd)               reload`,
		Version:         version,
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`"},
			&cli.BoolFlag{Name: "check", Usage: "validate the configuration and exit: 0 valid, 2 not"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "log from `LEVEL` on: debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "log as `FORMAT`: text, json"},
			&cli.IntFlag{Name: "readers", Value: fanotify.DefaultReaders(), Usage: "read events on `N` threads; the default fits the CPUs of this machine"},
		},
		ErrWriter: stderr,
		Writer:    stderr,
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			_, _ = fmt.Fprintf(stderr, "assayd: %v (see assayd --help)\n", err)
			return errInvalid
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run decides
		Action:         func(c *cli.Context) error { return start(c, stderr) },
	}
}

func start(c *cli.Context, stderr io.Writer) error {
	log, err := newLogger(c.String("log-level"), c.String("log-format"), stderr)
	if err == nil && c.Args().Present() {
		err = fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	if n := c.Int("readers"); err == nil && (n < 1 || n > 1024) {
		err = fmt.Errorf("--readers %d is not between 1 and 1024", n)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "assayd: %v (see assayd --help)\n", err)
		return errInvalid
	}
	file := configFile(c.String("config"))
	cfg, err := load(file)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "assayd: the configuration is not valid:\n%v\n", err)
		return errInvalid
	}
	if c.Bool("check") {
		_, _ = fmt.Fprintf(stderr, "%s: valid: %d tenants, %d scanners\n", nameOf(file), len(cfg.Tenants), len(cfg.Scanners))
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return serve(ctx, options{file: file, config: cfg, readers: c.Int("readers"), log: log})
}

// configFile is the file to read: the named one, the default one if it exists,
// or "" for the built-in configuration.
func configFile(named string) string {
	if named != "" {
		// `assay status` shows it to somebody in another directory.
		if abs, err := filepath.Abs(named); err == nil {
			return abs
		}
		return named
	}
	if _, err := os.Stat(defaultConfig); err != nil {
		return ""
	}
	return defaultConfig
}

func nameOf(file string) string {
	if file == "" {
		return "the built-in configuration"
	}
	return file
}

func load(file string) (*tenant.Config, error) {
	if file == "" {
		return tenant.Default(), nil
	}
	return tenant.Load(file)
}

func newLogger(level, format string, w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("--log-format %q is none of text, json", format)
}
