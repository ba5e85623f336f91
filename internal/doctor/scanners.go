package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/assay-project/assay/internal/scanners"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner"
)

// askScanners asks every configured scanner how it is, all at once.
func askScanners(ctx context.Context, o *Options, self *process) []Check {
	checks := make([]Check, len(o.Config.Scanners))
	var asking sync.WaitGroup
	for i := range o.Config.Scanners {
		asking.Go(func() { checks[i] = askScanner(ctx, o, &o.Config.Scanners[i], self) })
	}
	asking.Wait()
	return checks
}

// askScanner builds one scanner, asks it, and closes it.
func askScanner(ctx context.Context, o *Options, cfg *tenant.Scanner, self *process) Check {
	check := Check{Area: AreaScanners, Name: fmt.Sprintf("%s (%s)", cfg.Name, scanners.Driver(*cfg))}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	built, err := scanners.Build([]tenant.Scanner{*cfg}, nil)
	if err != nil {
		check.Status, check.Detail, check.Remedy = Fail, err.Error(), "correct this scanner in the configuration"
		return check
	}
	s := built[cfg.Name]
	err = s.Health(ctx)
	generation := s.Generation()
	if err = errors.Join(err, scanners.Close(built)); err == nil {
		check.Status = OK
		check.Detail = fmt.Sprintf("ready, generation %s", cmp.Or(string(generation), "unknown (its verdicts are never remembered)"))
		return check
	}
	describeScannerFailure(&check, cfg, err, self)
	return check
}

// describeScannerFailure explains err of a scanner that was asked by self.
func describeScannerFailure(check *Check, cfg *tenant.Scanner, err error, self *process) {
	check.Status, check.Detail = Fail, err.Error()
	check.Remedy = scannerRemedy(cfg, err)
	if errors.Is(err, fs.ErrPermission) && !self.root() {
		check.Status, check.Remedy = Unknown, runAsRoot
	}
}

// scannerRemedy says what to do about a scanner that reports err.
func scannerRemedy(cfg *tenant.Scanner, err error) string {
	switch {
	case cfg.Clamd != nil && errors.Is(err, scanner.ErrUnavailable):
		return fmt.Sprintf("start clamd (systemctl start clamav-daemon), and check that %s is its LocalSocket or TCPSocket", cfg.Clamd.Address)
	case cfg.Hashlist != nil:
		return "correct the list or the patterns under hashlist.files"
	default:
		return "do what the message says, then run the doctor again"
	}
}
