// Package scanners builds the scanners that a configuration names.
//
// It owns the mapping from a configured driver to its package, and nothing else.
// It must not own what a scanner does (scanner/ and its drivers) nor how several
// are combined (internal/guard). cmd/assayd owns what it returns and closes it;
// internal/doctor builds scanners to ask how they are, and closes them at once.
package scanners

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
	"github.com/assay-project/assay/scanner/clamd"
	"github.com/assay-project/assay/scanner/hashlist"
)

// ErrNoDriver says that a scanner is configured without a driver that this
// version knows. A configuration that was loaded never is.
var ErrNoDriver = errors.New("scanner has no driver")

// Build builds every scanner of cfg, by name. It does not need the programs
// behind them to be there. On an error, whatever was built is closed again, and
// the error names the scanner. The caller closes the scanners; logger may be nil.
func Build(cfg []tenant.Scanner, logger *slog.Logger) (map[string]scanner.Named, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	built := make(map[string]scanner.Named, len(cfg))
	for i := range cfg {
		name := cfg[i].Name
		if _, twice := built[name]; twice {
			return nil, abandon(built, fmt.Errorf("scanner %q is configured twice (give each scanner a name of its own)", name))
		}
		s, err := build(&cfg[i])
		if err != nil {
			return nil, abandon(built, fmt.Errorf("scanner %q: %w", name, err))
		}
		built[name] = scanner.Named{Name: name, Scanner: s}
		logger.Debug("scanner built", "scanner", name, "driver", Driver(cfg[i]))
	}
	return built, nil
}

// build builds one scanner.
func build(cfg *tenant.Scanner) (scanner.Scanner, error) {
	switch {
	case cfg.Clamd != nil:
		return clamd.New(clamd.Options{
			Address: cfg.Clamd.Address, Connections: cfg.Clamd.Connections, MaxFileSize: cfg.Clamd.MaxFileSize,
		})
	case cfg.Hashlist != nil:
		return hashlist.New(hashlist.Options{Files: cfg.Hashlist.Files})
	}
	return nil, ErrNoDriver
}

// abandon closes what was built and returns err, joined with what went wrong.
func abandon(built map[string]scanner.Named, err error) error {
	return errors.Join(err, Close(built))
}

// Close closes every scanner and returns their errors joined.
func Close(built map[string]scanner.Named) error {
	var errs []error
	for name, s := range built {
		if err := s.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close scanner %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Driver returns the name of the driver that cfg selects, as it stands in the
// configuration file, or "" if there is none.
func Driver(cfg tenant.Scanner) string {
	switch {
	case cfg.Clamd != nil:
		return "clamd"
	case cfg.Hashlist != nil:
		return "hashlist"
	}
	return ""
}
