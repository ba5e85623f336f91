// Package clamd is the driver for ClamAV's daemon: a [scanner.Scanner] that asks
// clamd over its documented protocol (clamd(8), section COMMANDS).
//
// It owns: connections to one clamd, their pool and back-off, the protocol, and
// what clamd's replies mean. It must not own: deadlines and policies, which are
// internal/guard's, and anything of clamd's own configuration or database.
//
// # How a file gets there
//
// Over a unix socket the lent descriptor itself is passed (FILDES); over TCP the
// content is read with pread and streamed (INSTREAM). Both run inside an
// IDSESSION, one command at a time, so that at most one descriptor is under way
// on a connection. Options.Connections sessions scan; one more belongs to the
// background refresher. clamd reads commands of an IDSESSION while it scans, so
// it sees when a scan is given up, which it would not outside a session; but it
// must have understood the command by then: see linger.
//
// # Generation
//
// clamd's VERSION reply is the generation. In a session every scan command is
// sent in one write with a VERSION command before it. clamd answers both in
// order from one thread, and loads databases in that same thread, so a verdict
// is labelled with the knowledge that it came from (or, if a database is swapped
// in while content is still being streamed, with the one just before: such a
// label stops matching as soon as the change is known). That costs no round trip
// and is stronger than comparing refreshed values; the comparison is made too: if
// the label is not the current generation when the verdict arrives, the verdict
// has no generation and is not marked. A VERSION after the scan would prove
// nothing more and cost a round trip. Generation itself does no I/O: a refresher
// asks every Options.RefreshInterval, every new connection asks, every scan asks.
// While clamd is down the last generation stays, so that what is known stays usable.
//
// VERSION counts the official daily database only. A clamd without one ("ClamAV
// 1.4.6", no number and date) has an unknown generation, and its verdicts are never
// marked. Signatures from elsewhere that are reloaded between two daily updates
// do not change VERSION: nothing in the protocol tells of them.
//
// # What clamd keeps quiet about
//
// clamd answers OK for much that it did not scan. What the driver does about it:
//   - Larger than MaxFileSize (documented default 100M): OK, unless
//     AlertExceedsMax is set, which it is not by default. The protocol does not
//     tell the limit, so Options.MaxFileSize does, and its default is clamd's.
//   - Content beyond MaxScanSize (400M), MaxRecursion, MaxFiles or MaxScanTime
//     inside an archive: likewise. Only AlertExceedsMax helps; Health finds out
//     whether it is set by having a small, absurdly nested file scanned, and
//     returns ErrSilentLimits if not.
//   - A descriptor that it cannot read, and a file whose mtime changes while
//     it is read: OK. So the driver tries to read first, and a file that changed
//     under a FILDES scan without a finding is streamed instead.
//   - A RAR archive is opened a second time by the name that the passed
//     descriptor has in /proc, in clamd's own mount namespace, where a tenant's path
//     may lead elsewhere. Files that begin like one are streamed, so that clamd
//     has its own copy. A RAR archive in the middle of a program is not recognised.
//   - Files of at most 5 bytes, and encrypted archives unless AlertEncrypted is set.
//
// clamd rewinds the passed descriptor's shared offset. The driver puts it back,
// but cannot do so if it gave the scan up; clamd may then also hold the
// descriptor until its scan ends.
//
// # Concurrency
//
// The locks, pool.mu, backoff.mu and knowledge.mu, are never held together nor
// over I/O. Every blocking call on a connection ends when its context does, because
// that closes the connection.
package clamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/assay-project/assay/scanner"
)

// DefaultMaxFileSize is the documented default of clamd's MaxFileSize and
// StreamMaxLength (clamd.conf(5), version 1.4: 100M), in bytes.
const DefaultMaxFileSize = 100 << 20

// maxSocketPath is the longest path that fits a unix socket address.
const maxSocketPath = 107

// ErrSilentLimits is what Health reports of a clamd that calls content clean
// that it left out because of its own limits. Scans work nevertheless.
var ErrSilentLimits = errors.New("clamd answers OK for what exceeds its limits: set 'AlertExceedsMax yes' in clamd.conf and restart clamd")

// errClosed is why nothing works after Close.
var errClosed = fmt.Errorf("clamd: scanner is closed: %w", scanner.ErrUnavailable)

// Options configure a Scanner. The zero value of every field but Address stands
// for its default.
type Options struct {
	// Address is unix:/absolute/path or tcp:host:port.
	Address string
	// Connections is the number of sessions kept, and so of scans at once; default 4.
	// It should not exceed clamd's MaxThreads.
	Connections int
	// DialTimeout bounds connecting and the first reply; default 2 s.
	DialTimeout time.Duration
	// RefreshInterval is the time between two questions for the generation;
	// default 5 s.
	RefreshInterval time.Duration
	// IdleTimeout is how long an unused connection is kept; default 60 s. It
	// must be shorter than clamd's ReadTimeout (default 120 s).
	IdleTimeout time.Duration
	// BackoffMin and BackoffMax bound the time between two attempts to connect
	// after a failed one; defaults 100 ms and 5 s.
	BackoffMin, BackoffMax time.Duration
	// MaxFileSize is clamd's own MaxFileSize in bytes, or StreamMaxLength if that
	// is smaller. Larger files are unscannable without asking. 0 means
	// DefaultMaxFileSize; a negative number means that clamd is asked about
	// every file, which is only safe if AlertExceedsMax is set.
	MaxFileSize int64
}

const (
	// lingerTime is how long a clamd may take to understand the command of a scan that
	// was given up meanwhile.
	lingerTime = 30 * time.Second
	// lingerFactor bounds such sessions: so many for each that scans.
	lingerFactor = 4
)

// A Scanner asks one clamd. It implements [scanner.Scanner].
type Scanner struct {
	opts          Options
	network, addr string
	know          knowledge
	pool          *pool
	backoff       *backoff
	life          context.Context // ends with Close
	end           context.CancelFunc
	lingering     chan struct{} // a token for each session that ends in the background
	lingerTime    time.Duration
	running       sync.WaitGroup // the refresher, and those sessions
}

var _ scanner.Scanner = (*Scanner)(nil)

// New returns a scanner for the clamd at opts.Address and starts its refresher.
// It does not need clamd to be there: a scanner that is down is a state. It
// returns an error only if opts cannot be used.
func New(opts Options) (*Scanner, error) {
	network, addr, err := splitAddress(opts.Address)
	if err != nil {
		return nil, err
	}
	if err := opts.complete(); err != nil {
		return nil, err
	}
	s := &Scanner{
		opts: opts, network: network, addr: addr,
		pool:    newPool(opts.Connections, opts.IdleTimeout),
		backoff: newBackoff(opts.BackoffMin, opts.BackoffMax), lingering: make(chan struct{}, lingerFactor*opts.Connections),
		lingerTime: lingerTime,
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.running.Go(s.refreshLoop)
	return s, nil
}

// Generation returns clamd's last known VERSION, or "" if it is not known or
// has no database version in it.
func (s *Scanner) Generation() scanner.Generation { return s.know.now() }

// Close ends the refresher and all scans under way, and closes all connections.
// It returns nil, and may be called again.
func (s *Scanner) Close() error {
	s.end()
	s.pool.close()
	s.running.Wait()
	return nil
}

// splitAddress returns the network and address for net.Dial.
func splitAddress(address string) (network, addr string, err error) {
	const want = "want unix:/absolute/path or tcp:host:port"
	network, addr, _ = strings.Cut(address, ":")
	switch network {
	case "unix":
		if !filepath.IsAbs(addr) || len(addr) > maxSocketPath || strings.ContainsRune(addr, 0) {
			return "", "", fmt.Errorf("clamd address %q: %q is no absolute path of at most %d bytes; %s", address, addr, maxSocketPath, want)
		}
	case "tcp":
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return "", "", fmt.Errorf("clamd address %q: %w; %s", address, err, want)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
			return "", "", fmt.Errorf("clamd address %q: no host or no port number; %s", address, want)
		}
	default:
		return "", "", fmt.Errorf("clamd address %q: %s", address, want)
	}
	return network, addr, nil
}

// complete fills in the defaults and checks what is set.
func (o *Options) complete() error {
	if o.Connections == 0 {
		o.Connections = 4
	}
	if o.Connections < 0 {
		return fmt.Errorf("clamd: %d connections; want at least 1", o.Connections)
	}
	if o.MaxFileSize == 0 {
		o.MaxFileSize = DefaultMaxFileSize
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{
		{"dial timeout", &o.DialTimeout, 2 * time.Second},
		{"refresh interval", &o.RefreshInterval, 5 * time.Second},
		{"idle timeout", &o.IdleTimeout, time.Minute},
		{"least back-off", &o.BackoffMin, 100 * time.Millisecond},
		{"greatest back-off", &o.BackoffMax, max(5*time.Second, o.BackoffMin)},
	} {
		if *d.value == 0 {
			*d.value = d.standard
		}
		if *d.value < 0 {
			return fmt.Errorf("clamd: %s of %v; want more than 0", d.name, *d.value)
		}
	}
	if o.BackoffMax < o.BackoffMin {
		return fmt.Errorf("clamd: greatest back-off %v is less than the least, %v", o.BackoffMax, o.BackoffMin)
	}
	return nil
}
