package clamd

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/assay-project/assay/scanner"
)

func TestParseScan(t *testing.T) {
	clean := scanner.Verdict{Outcome: scanner.Clean}
	tooLarge := scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonTooLarge}
	limits := scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonLimits}
	encrypted := scanner.Verdict{Outcome: scanner.Unscannable, Reason: scanner.ReasonEncrypted}
	found := func(name string) scanner.Verdict {
		return scanner.Verdict{Outcome: scanner.Malicious, Signature: name}
	}
	for _, c := range []struct {
		object, body string
		want         scanner.Verdict
	}{
		{objectDescriptor, "fd[12]: OK", clean},
		{objectDescriptor, "fd[0]: OK", clean},
		{objectStream, "stream: OK", clean},
		{objectDescriptor, "fd[12]: Eicar-Test-Signature FOUND", found("Eicar-Test-Signature")},
		{objectStream, "stream: Win.Test.EICAR_HDB-1(44d88612fea8a8f36de82e1278abb02f:68) FOUND", found("Win.Test.EICAR_HDB-1(44d88612fea8a8f36de82e1278abb02f:68)")},
		{objectStream, "stream: YARA.Odd: name FOUND", found("YARA.Odd: name")},
		{objectStream, "stream: OK FOUND", found("OK")},
		{objectStream, "stream: Heuristics.Phishing.Email FOUND", found("Heuristics.Phishing.Email")},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.MaxFileSize FOUND", tooLarge},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.MaxScanSize FOUND", limits},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.MaxRecursion FOUND", limits},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.MaxFiles FOUND", limits},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.MaxScanTime FOUND", limits},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded.EmailHeaders FOUND", limits},
		{objectDescriptor, "fd[1]: Heuristics.Limits.Exceeded FOUND", limits},
		{objectStream, "stream: Heuristics.Encrypted.Zip FOUND", encrypted},
		{objectStream, "INSTREAM size limit exceeded. ERROR", tooLarge},
		{objectStream, "stream: Exceeded time limit ERROR", limits},
		{objectDescriptor, "fd[3]: Exceeded max scan size ERROR", limits},
	} {
		got, err := parseScan([]byte(c.body), c.object)
		if err != nil || got.verdict != c.want {
			t.Errorf("%q: got %+v, %v; want %+v", c.body, got.verdict, err, c.want)
		}
		if refused := strings.HasSuffix(c.body, "ERROR"); got.refused != refused {
			t.Errorf("%q: refused is %v", c.body, got.refused)
		}
	}
}

func TestParseScanFailed(t *testing.T) {
	for _, c := range []struct {
		object, body string
		want         error // that the verdict's error wraps; nil: none of the sentinels
	}{
		{objectDescriptor, "fd[12]: Not a regular file ERROR", nil},
		{objectDescriptor, "fd[12]: Can't allocate memory ERROR", nil},
		{objectDescriptor, "fd[12]: Can't read file ERROR", scanner.ErrRead},
		{objectDescriptor, "No file descriptor received. ERROR", nil},
		{objectStream, "Error writing to temporary file ERROR", nil},
		{objectStream, "stream: OK ERROR", nil},
	} {
		got, err := parseScan([]byte(c.body), c.object)
		if err != nil || got.verdict.Outcome != scanner.Error || !got.refused {
			t.Fatalf("%q: got %+v, %v", c.body, got, err)
		}
		for _, sentinel := range []error{scanner.ErrRead, scanner.ErrProtocol, scanner.ErrUnavailable} {
			if is := errors.Is(got.verdict.Err, sentinel); is != (sentinel == c.want) { //nolint:errorlint // One sentinel against another.
				t.Errorf("%q: wraps %q: %v", c.body, sentinel, is)
			}
		}
	}
}

func TestParseScanNotUnderstood(t *testing.T) {
	for _, c := range []struct{ object, body string }{
		{objectDescriptor, ""},
		{objectDescriptor, "OK"},
		{objectDescriptor, ": OK"},
		{objectDescriptor, "fd[12]:OK"},
		{objectDescriptor, "fd[12]: "},
		{objectDescriptor, "fd[12]: O"},
		{objectDescriptor, "fd[12]: ok"},
		{objectDescriptor, "fd[12]: OK "},
		{objectDescriptor, "fd[12]: OKAY"},
		{objectDescriptor, "fd[12]: OK\n"},
		{objectDescriptor, "fd[]: OK"},
		{objectDescriptor, "fd[-1]: OK"},
		{objectDescriptor, "fd[+1]: OK"},
		{objectDescriptor, "fd[99999999999]: OK"},
		{objectDescriptor, "fd[12: OK"},
		{objectDescriptor, "fd[12]x: OK"},
		{objectDescriptor, "fd[: OK"},
		{objectDescriptor, "stream: OK"},
		{objectStream, "fd[12]: OK"},
		{objectStream, "streams: OK"},
		{objectStream, "/etc/passwd: OK"},
		{objectStream, "stream: Excluded"},
		{objectStream, "stream: Empty file"},
		{objectStream, "stream:  FOUND"},
		{objectStream, "stream: FOUND"},
		{objectStream, "Eicar FOUND"},
		{objectStream, "stream: Bad\x01Name FOUND"},
		{objectStream, "stream: Bad\xffName FOUND"},
		{objectStream, " ERROR"},
		{objectStream, "ERROR"},
		{objectStream, "stream: ERROR"},
		{objectStream, "UNKNOWN COMMAND"},
		{objectStream, "COMMAND UNAVAILABLE"},
		{objectStream, "stream: PONG"},
	} {
		if got, err := parseScan([]byte(c.body), c.object); !errors.Is(err, scanner.ErrProtocol) {
			t.Errorf("%q for %s: got %+v, %v; want an error that wraps %q", c.body, c.object, got, err, scanner.ErrProtocol)
		}
	}
}

func TestCutID(t *testing.T) {
	for _, c := range []struct {
		line, want string
		ok         bool
	}{
		{"7: PONG", "PONG", true},
		{"7: ", "", true},
		{"7: 7: PONG", "7: PONG", true},
		{"7:PONG", "", false},
		{"77: PONG", "", false},
		{"07: PONG", "", false},
		{"8: PONG", "", false},
		{": PONG", "", false},
		{"PONG", "", false},
		{"", "", false},
	} {
		got, err := cutID([]byte(c.line), 7)
		if string(got) != c.want || (err == nil) != c.ok || (err != nil && !errors.Is(err, scanner.ErrProtocol)) {
			t.Errorf("%q: got %q, %v", c.line, got, err)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for _, c := range []struct {
		body string
		want scanner.Generation
		err  error
	}{
		{fakeVersion, fakeVersion, nil},
		{"ClamAV 1.4.6", "", nil}, // no database version: nothing tells of a change
		{"ClamAV 1.4.6/27000", "", nil},
		{"COMMAND UNAVAILABLE", "", errNoVersion},
		{"PONG", "", scanner.ErrProtocol},
		{"ClamAV", "", scanner.ErrProtocol},
		{"clamav 1/2/3", "", scanner.ErrProtocol},
		{"ClamAV 1.4.6/27000/\x00", "", scanner.ErrProtocol},
		{"", "", scanner.ErrProtocol},
	} {
		got, err := parseVersion([]byte(c.body))
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: got %q, %v; want %q, %v", c.body, got, err, c.want, c.err)
		}
	}
}

// FuzzReply holds the parsers to what matters: nothing but the one documented
// reply is clean, and every verdict has the form that package scanner promises.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		"3: fd[12]: OK", "3: stream: OK", "3: stream: A.B FOUND", "3: INSTREAM size limit exceeded. ERROR",
		"3: fd[1]: Heuristics.Limits.Exceeded.MaxFileSize FOUND", "3: " + fakeVersion, "3: PONG", goodbye, "", "3: ", "3: fd[]: OK",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, line []byte, stream bool) {
		body, err := cutID(line, 3)
		if err != nil {
			if !errors.Is(err, scanner.ErrProtocol) {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		checkParsedVersion(t, body)
		object := objectDescriptor
		if stream {
			object = objectStream
		}
		checkParsedScan(t, body, object)
	})
}

func checkParsedVersion(t *testing.T, body []byte) {
	t.Helper()
	gen, err := parseVersion(body)
	if gen != "" && (err != nil || string(gen) != string(body)) {
		t.Errorf("%q: version %q, %v", body, gen, err)
	}
}

func checkParsedScan(t *testing.T, body []byte, object string) {
	t.Helper()
	got, err := parseScan(body, object)
	if err != nil {
		if !errors.Is(err, scanner.ErrProtocol) || got != (reply{}) {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
		return
	}
	v := got.verdict
	switch v.Outcome {
	case scanner.Clean:
		if !regexp.MustCompile(`^(stream|fd\[\d+\]): OK$`).Match(body) {
			t.Errorf("%q is clean", body)
		}
	case scanner.Malicious:
		if v.Signature == "" || !strings.HasSuffix(string(body), " FOUND") {
			t.Errorf("%q is malicious: %+v", body, v)
		}
	case scanner.Unscannable:
		if v.Reason == "" {
			t.Errorf("%q is unscannable without reason", body)
		}
	case scanner.Error:
		if v.Err == nil {
			t.Errorf("%q is an error without error", body)
		}
	}
	if v.Mark || v.Generation != "" {
		t.Errorf("%q: marked by the parser: %+v", body, v)
	}
}
