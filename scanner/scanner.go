// Package scanner is the vocabulary between the gate and whatever decides about
// a file: the Scanner interface, its verdicts, and the stages in which a tenant
// combines several scanners.
//
// It owns: what a verdict is, how verdicts of one policy combine. It must not
// own: fanotify events, containers, caches, answers to the kernel. A [File] is
// lent by internal/guard, which owns the descriptor before, during and after the
// scan; what a verdict leads to is decided there too.
//
// Self-deadlocks to avoid: a scanner runs while a process of the node waits for
// its answer. It must never open a path of a guarded container (it would wait
// for itself), only read the descriptor that it was lent.
package scanner

import (
	"context"
	"errors"
)

// An Outcome is what a scanner found. There are exactly four: something that
// could not be scanned is never clean, and a failure is never unscannable.
type Outcome uint8

// The outcomes. The zero value is Error, so that a forgotten verdict never
// allows anything by itself.
const (
	// Error: the scanner failed (unreachable, timed out, broken protocol, read
	// error). Says nothing about the file; never remembered.
	Error Outcome = iota
	// Clean: the whole file was scanned and nothing was found.
	Clean
	// Malicious: something was found; Verdict.Signature names it.
	Malicious
	// Unscannable: the scanner works but cannot judge this file (too large,
	// encrypted, limits exceeded); Verdict.Reason says why.
	Unscannable
)

// String returns the outcome's name as it stands in records: error, clean,
// malicious or unscannable.
func (o Outcome) String() string {
	switch o {
	case Clean:
		return "clean"
	case Malicious:
		return "malicious"
	case Unscannable:
		return "unscannable"
	case Error:
		return "error"
	}
	return "error"
}

// A Reason says why a file is unscannable. The set is closed, because each
// reason has a counter and a policy may treat one differently.
type Reason string

// The reasons of an Unscannable verdict.
const (
	ReasonTooLarge  Reason = "too-large" // larger than a size limit of the tenant or the scanner
	ReasonLimits    Reason = "limits"    // nesting, ratio, count or time limits of the scanner were exceeded
	ReasonEncrypted Reason = "encrypted" // password-protected content
	ReasonFormat    Reason = "format"    // the scanner refuses this kind of content
)

// Errors that a Verdict of outcome Error may wrap, for errors.Is. Anything else
// counts as a plain scanner error.
var (
	// ErrUnavailable: the scanner cannot be reached or is not ready.
	ErrUnavailable = errors.New("scanner unavailable")
	// ErrProtocol: the scanner's reply could not be understood.
	ErrProtocol = errors.New("scanner protocol error")
	// ErrRead: the file could not be read to its end.
	ErrRead = errors.New("file could not be read")
)

// A Generation names the state of a scanner's knowledge (engine and database).
// It is opaque: two generations are compared for equality and nothing else.
// The empty generation means "unknown" and equals no other, itself included:
// use [Generation.Matches].
type Generation string

// Matches reports whether verdicts of generation g still hold under h.
func (g Generation) Matches(h Generation) bool { return g != "" && g == h }

// An Op is what the process wants to do with the file.
type Op uint8

// The operations.
const (
	OpOpen Op = iota
	OpExec
)

// String returns "open" or "exec".
func (o Op) String() string {
	if o == OpExec {
		return "exec"
	}
	return "open"
}

// A File is what a scanner is lent for one scan.
type File struct {
	// FD is open for reading. It stays valid until Scan returns and remains the
	// lender's: a scanner never closes it, never seeks it (other scanners share
	// its offset: use pread), and duplicates it if another thread or process
	// needs it for longer.
	FD int
	// Size is the file's length in bytes when the scan began. The file may
	// shrink or grow meanwhile.
	Size int64
	// The rest is metadata for logging and for scanners with a use for it.
	// Path is what the container calls the file: untrusted, never opened.
	Tenant, Container, Path string
	Op                      Op
	PID                     int
}

// A Verdict is what a scanner says about one file.
type Verdict struct {
	Outcome Outcome
	// Signature names what was found; set exactly when Malicious.
	Signature string
	// Reason is set exactly when Unscannable.
	Reason Reason
	// Err is set exactly when Error.
	Err error
	// Mark says that the result may be remembered for as long as neither the
	// file nor the generation changes. Only Clean and Malicious may set it.
	Mark bool
	// Generation is the knowledge that the verdict came from; empty if it
	// changed while the scan ran, or if it is unknown.
	Generation Generation
}

// CleanVerdict returns a Clean verdict that may be remembered under gen.
func CleanVerdict(gen Generation) Verdict {
	return Verdict{Outcome: Clean, Mark: gen != "", Generation: gen}
}

// MaliciousVerdict returns a Malicious verdict for signature that may be
// remembered under gen.
func MaliciousVerdict(signature string, gen Generation) Verdict {
	return Verdict{Outcome: Malicious, Signature: signature, Mark: gen != "", Generation: gen}
}

// UnscannableVerdict returns an Unscannable verdict; it is never remembered.
func UnscannableVerdict(reason Reason, gen Generation) Verdict {
	return Verdict{Outcome: Unscannable, Reason: reason, Generation: gen}
}

// ErrorVerdict returns an Error verdict; it is never remembered.
func ErrorVerdict(err error) Verdict {
	return Verdict{Outcome: Error, Err: err}
}

// A Scanner judges files. All methods may be called from many goroutines at
// once. scannertest.Run is the conformance suite of this interface.
type Scanner interface {
	// Scan judges f. It returns soon after ctx is done, with an Error verdict
	// that wraps ctx.Err(), and holds no copy of f.FD afterwards. It never
	// panics on any content.
	Scan(ctx context.Context, f *File) Verdict
	// Generation returns the knowledge that a scan begun now would use, or ""
	// while that is unknown. It does no I/O and does not block.
	Generation() Generation
	// Health returns nil if a scan begun now can be expected to work, or an
	// error that says what is wrong and what to do. It may do I/O, bounded by ctx.
	Health(ctx context.Context) error
	// Close releases everything; scans under way end with an Error verdict.
	Close() error
}

// Instant is implemented by scanners that can judge some files from File's
// metadata alone: without I/O, without blocking and without allocating. The
// gate calls ScanInstant on its event reader and hands the file to a worker
// only if the answer is not known.
type Instant interface {
	Scanner
	// ScanInstant returns the verdict, or known == false if Scan is needed.
	ScanInstant(f *File) (v Verdict, known bool)
}
