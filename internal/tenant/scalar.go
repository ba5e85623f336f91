package tenant

import (
	"fmt"
	"net"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxSocketPath is the longest path that fits sun_path of unix(7) with its
// terminating zero, in bytes.
const maxSocketPath = 107

// The bounds of a deadline. The upper one keeps a waiting opener well clear of
// the kernel's hung-task report (120 s by default).
const (
	minDeadline = time.Millisecond
	minGrace    = time.Second
	maxGrace    = time.Hour
	maxDeadline = 60 * time.Second
)

// A check returns what is wrong with a text, to follow the text itself in a
// message, and what to do; "" means that nothing is wrong.
type check func(text string) (wrong, remedy string)

// parseSize reads a whole number of bytes with an optional unit. Powers of ten
// and of two are kept apart: 1MB is 1,000,000 bytes, 1MiB is 1,048,576.
func parseSize(text string) (int64, bool) {
	digits := strings.TrimRightFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	factor, ok := sizeUnit(text[len(digits):])
	if !ok || !decimal(digits) {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > (1<<63-1)/factor {
		return 0, false
	}
	return n * factor, true
}

// sizeUnit returns the number of bytes in one unit.
func sizeUnit(name string) (int64, bool) {
	switch name {
	case "", "B":
		return 1, true
	case "kB", "KB":
		return 1e3, true
	case "MB":
		return 1e6, true
	case "GB":
		return 1e9, true
	case "TB":
		return 1e12, true
	case "KiB":
		return 1 << 10, true
	case "MiB":
		return 1 << 20, true
	case "GiB":
		return 1 << 30, true
	case "TiB":
		return 1 << 40, true
	}
	return 0, false
}

// decimal reports whether text is digits only, without a leading zero that
// other readers of YAML take for octal.
func decimal(text string) bool {
	return text == "0" || text != "" && text[0] != '0' && strings.Trim(text, "0123456789") == ""
}

// checkName accepts names of scanners and tenants: they stand in records,
// metrics and addresses.
func checkName(text string) (wrong, remedy string) {
	word := strings.TrimFunc(text, func(r rune) bool {
		return r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-", r))
	})
	if word != "" || text == "" || len(text) > 63 || strings.ContainsAny(text[:1], "._-") {
		return "is not a usable name", "use 1 to 63 of the characters a-z A-Z 0-9 . _ - and begin with a letter or digit"
	}
	return "", ""
}

// checkPath accepts clean absolute paths other than "/".
func checkPath(text string) (wrong, remedy string) {
	switch {
	case text == "":
		return "is not a path", "write an absolute path"
	case !filepath.IsAbs(text):
		return "is a relative path", "write an absolute path"
	case filepath.Clean(text) != text:
		return "is not a clean path", fmt.Sprintf("write %q", filepath.Clean(text))
	case text == "/":
		return "is the root directory", "write a path below it"
	}
	return "", ""
}

// checkSocket accepts paths of unix sockets.
func checkSocket(text string) (wrong, remedy string) {
	if wrong, remedy = checkPath(text); wrong != "" {
		return wrong, remedy
	}
	if len(text) > maxSocketPath {
		return fmt.Sprintf("is %d bytes long", len(text)),
			fmt.Sprintf("a unix socket's path has at most %d bytes", maxSocketPath)
	}
	return "", ""
}

// checkAddress accepts unix:/path and tcp:host:port.
func checkAddress(text string) (wrong, remedy string) {
	const forms = "write unix:/path/to/socket or tcp:host:port"
	if p, ok := strings.CutPrefix(text, "unix:"); ok {
		switch wrong, remedy = checkSocket(p); {
		case wrong == "":
			return "", ""
		case filepath.IsAbs(p) && filepath.Clean(p) != p:
			remedy = fmt.Sprintf("write %q", "unix:"+filepath.Clean(p))
		}
		return "is not an address: its path " + wrong, remedy
	}
	hostport, ok := strings.CutPrefix(text, "tcp:")
	switch {
	case ok && strings.HasPrefix(hostport, "//"):
		return "is not an address", "leave the slashes out: tcp:host:port"
	case ok:
		return checkHostPort(hostport)
	case strings.HasPrefix(text, "/"):
		return "is not an address", fmt.Sprintf("write %q", "unix:"+text)
	}
	if wrong, _ := checkHostPort(text); wrong == "" {
		return "is not an address", fmt.Sprintf("write %q", "tcp:"+text)
	}
	return "is not an address", forms
}

// checkHostPort accepts host:port with a port from 1 to 65535.
func checkHostPort(text string) (wrong, remedy string) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return "is not an address", "write tcp:host:port, with an IPv6 address in brackets"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !decimal(port) {
		return fmt.Sprintf("has no usable port: %q", port), "write a port number from 1 to 65535"
	}
	return "", ""
}

// checkFiles accepts glob patterns of absolute paths.
func checkFiles(text string) (wrong, remedy string) {
	if wrong, remedy = checkPath(text); wrong != "" {
		return wrong, remedy
	}
	return checkPattern(text)
}

// checkPattern accepts shell patterns as path.Match understands them.
func checkPattern(text string) (wrong, remedy string) {
	if _, err := path.Match(text, ""); err != nil {
		return "is not a valid pattern", "close every [ with a ] and put nothing but characters and ranges between"
	}
	if strings.Contains(text, "[!") {
		return "uses [! which does not negate here", "write [^ to negate"
	}
	return "", ""
}

// checkNamespace accepts namespace patterns.
func checkNamespace(text string) (wrong, remedy string) {
	if text == "" {
		return "selects no namespace", "leave it out; containers without a namespace belong to the tenant that matches everything"
	}
	return checkPattern(text)
}

// checkMount accepts destinations of whole mounts.
func checkMount(text string) (wrong, remedy string) {
	if strings.ContainsAny(text, `*?[]\`) {
		return "is a path pattern: " + whyNoPaths, "name the destination of one whole mount"
	}
	if text == "/" {
		return "is the whole container", "list its namespace under exempt if the container shall not be guarded"
	}
	return checkPath(text)
}
