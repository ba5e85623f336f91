package clamd

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/assay-project/assay/scanner"
)

// maxLine bounds a reply in bytes, terminator included. Replies have some tens
// of bytes; the longest part is a signature's name.
const maxLine = 4096

// What clamd calls the file in its reply, apart from descriptor numbers.
const (
	objectStream     = "stream" // after INSTREAM
	objectDescriptor = "fd["    // after FILDES, followed by clamd's number and "]"
)

// errNoVersion: clamd is configured not to tell its version.
var errNoVersion = errors.New("clamd: VERSION is switched off (EnableVersionCommand)")

// A reply is what clamd says about one file.
type reply struct {
	// verdict has neither generation nor mark.
	verdict scanner.Verdict
	// refused: clamd answered ERROR and may close the session.
	refused bool
}

// protocolError returns an error for a reply that is not understood.
func protocolError(what string, line []byte) error {
	const shown = 80
	if len(line) > shown {
		line = line[:shown]
	}
	return fmt.Errorf("clamd: %s: %q: %w", what, line, scanner.ErrProtocol)
}

// cutID returns the body of a reply in a session, "ID: BODY" without its
// terminator, if its ID is the one of the command that is to be answered.
func cutID(line []byte, id uint32) ([]byte, error) {
	body, ok := bytes.CutPrefix(line, strconv.AppendUint(nil, uint64(id), 10))
	if ok {
		body, ok = bytes.CutPrefix(body, []byte(": "))
	}
	if !ok {
		return nil, protocolError(fmt.Sprintf("reply is not to command %d", id), line)
	}
	return body, nil
}

// parseVersion returns the generation in the body of a VERSION reply,
// "ClamAV ENGINE/DATABASE/DATE". Without a database version it is unknown: "".
func parseVersion(body []byte) (scanner.Generation, error) {
	text := string(body)
	switch {
	case text == "COMMAND UNAVAILABLE":
		return "", errNoVersion
	case !strings.HasPrefix(text, "ClamAV ") || !printable(text):
		return "", protocolError("not a version", body)
	case strings.Count(text, "/") < 2:
		return "", nil
	}
	return scanner.Generation(text), nil
}

// parseScan returns what the body of the reply to a scan command means. object
// is objectStream or objectDescriptor. Everything that is not exactly one of the
// documented replies is an error that wraps scanner.ErrProtocol.
func parseScan(body []byte, object string) (reply, error) {
	text := string(body)
	if !printable(text) {
		return reply{}, protocolError("unreadable reply", body)
	}
	about, ours := cutObject(text, object)
	if ours && about == "OK" {
		return reply{verdict: scanner.Verdict{Outcome: scanner.Clean}}, nil
	}
	if name, found := strings.CutSuffix(about, " FOUND"); ours && found && name != "" {
		return reply{verdict: foundVerdict(name)}, nil
	}
	if what, failed := strings.CutSuffix(about, " ERROR"); failed && what != "" {
		return reply{verdict: failedVerdict(what), refused: true}, nil
	}
	return reply{}, protocolError("reply not understood", body)
}

// cutObject returns what text says about the object. Errors of the protocol
// itself name no object; for them ours is false and about is the whole text.
func cutObject(text, object string) (about string, ours bool) {
	name, about, ok := strings.Cut(text, ": ")
	if !ok {
		return text, false
	}
	if number, ok := strings.CutPrefix(name, objectDescriptor); ok && object == objectDescriptor {
		number, ok = strings.CutSuffix(number, "]")
		if _, err := strconv.ParseUint(number, 10, 31); ok && err == nil {
			return about, true
		}
	}
	if name == object && object == objectStream {
		return about, true
	}
	return text, false
}

// foundVerdict sorts alerts on content from alerts on what clamd left out.
func foundVerdict(name string) scanner.Verdict {
	switch {
	case strings.HasPrefix(name, "Heuristics.Limits.Exceeded.MaxFileSize"):
		return scanner.UnscannableVerdict(scanner.ReasonTooLarge, "")
	case strings.HasPrefix(name, "Heuristics.Limits.Exceeded"):
		return scanner.UnscannableVerdict(scanner.ReasonLimits, "")
	case strings.HasPrefix(name, "Heuristics.Encrypted."):
		return scanner.UnscannableVerdict(scanner.ReasonEncrypted, "")
	}
	return scanner.MaliciousVerdict(name, "")
}

// failedVerdict sorts what clamd reports as ERROR: the texts are those of
// libclamav's cl_strerror and of clamd's session.c and server-th.c.
func failedVerdict(what string) scanner.Verdict {
	switch what {
	case "INSTREAM size limit exceeded.":
		return scanner.UnscannableVerdict(scanner.ReasonTooLarge, "")
	case "Exceeded time limit", "Exceeded max recursion depth", "Exceeded max scan size", "Exceeded max scan files":
		return scanner.UnscannableVerdict(scanner.ReasonLimits, "")
	case "Can't read file", "Can't get file status":
		return scanner.ErrorVerdict(fmt.Errorf("clamd: %s: %w", what, scanner.ErrRead))
	}
	return scanner.ErrorVerdict(fmt.Errorf("clamd: %s", what))
}

func printable(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, unicode.IsControl) < 0
}
