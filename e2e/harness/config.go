package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Hashes returns a configuration whose only scanner is the built-in hash list
// with the test image's list. Each of policy is a line of the only tenant, named
// default.
func (s *Suite) Hashes(tb testing.TB, policy ...string) string {
	tb.Helper()
	return HashScanner(s.Image(tb).Hashes) + "tenants:\n" + Tenant("default", "{}", "hashes", policy...)
}

// AnyHash returns a hash list that names nothing, but could name a file of any size:
// with it, every file has to be read. Further lines may be added.
func (s *Suite) AnyHash(tb testing.TB, lines ...string) string {
	tb.Helper()
	text := strings.Repeat("00", 32) + ":*:Assay.Test.Nothing\n" + strings.Join(lines, "")
	return filepath.Join(s.HostDirectory(tb, map[string][]byte{"any.hsb": []byte(text)}), "any.hsb")
}

// HashLine returns data's line in a hash list.
func HashLine(data []byte, name string) string { return hashLine(data, name) }

// HashScanner returns the scanners section with one hash list named hashes.
func HashScanner(file string) string {
	return fmt.Sprintf("scanners:\n  - name: hashes\n    hashlist: {files: [%s]}\n", file)
}

// ClamdScanner returns the scanners section with one clamd, named clamav, that
// listens on a unix socket.
func ClamdScanner(socket string) string {
	return fmt.Sprintf("scanners:\n  - name: clamav\n    clamd: {address: \"unix:%s\", connections: 2}\n", socket)
}

// Tenant returns one entry of the tenants section: its name, its match (YAML),
// its only scanner and further lines of policy.
func Tenant(name, match, scanner string, policy ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %s\n    match: %s\n    stages:\n      - {scanners: [%s], decide: all}\n", name, match, scanner)
	for _, line := range policy {
		fmt.Fprintf(&b, "    %s\n", line)
	}
	return b.String()
}

// HostDirectory returns a new directory with the given files, to be bound into a
// container.
func (s *Suite) HostDirectory(tb testing.TB, files map[string][]byte) string {
	tb.Helper()
	dir := s.Scratch(tb)
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}
