package clamdtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A Signature is something that clamd finds anywhere in a file.
type Signature struct {
	// Name is what clamd calls it. To the name of a signature from a database that
	// ClamAV's makers have not signed, clamd adds ".UNOFFICIAL".
	Name string
	// Content is what is found: at least 4 bytes.
	Content []byte
}

// Default returns the signature that an Instance has unless told otherwise.
func Default() Signature {
	return Signature{Name: "Assay.Test.Malware", Content: []byte("assay test malware: harmless, but clamd finds it\n")}
}

// DatabaseName is the name that a file with a [Database] must have.
const DatabaseName = "daily.cud"

// writeDatabase replaces clamd's database by one with a new version.
func (i *Instance) writeDatabase(tb testing.TB, signatures []Signature) {
	tb.Helper()
	i.version++
	content, err := Database(i.version, signatures...)
	if err != nil {
		tb.Fatal(err)
	}
	// Renamed into place, so that clamd never loads half of it.
	if err := os.WriteFile(i.path("new"), content, 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(i.path("new"), i.path("db/"+DatabaseName)); err != nil {
		tb.Fatal(err)
	}
}

// Database returns a database of clamd's with these signatures.
//
// The container format of the official database, unsigned, and under its name,
// is what makes clamd tell a version: that of plain signature files is nowhere
// to be seen. The header, 512 bytes, is followed by a tar archive of a list of
// the files with their lengths and SHA-256, and of the files.
func Database(version int, signatures ...Signature) ([]byte, error) {
	const (
		level = 1 // of the engine that is needed
		file  = "daily.ndb"
	)
	made := time.Date(2026, 1, 1, 0, 0, version, 0, time.UTC)
	header := fmt.Sprintf("ClamAV-VDB:%s:%d:%d:%d:X:X:assay:%d",
		made.Format("02 Jan 2006 15-04 -0700"), version, len(signatures), level, made.Unix())
	content := extended(signatures)
	list := fmt.Sprintf("%s\n%s:%d:%x\n", header, file, len(content), sha256.Sum256([]byte(content)))
	var whole bytes.Buffer
	fmt.Fprintf(&whole, "%-512s", header)
	archive := tar.NewWriter(&whole)
	// A first file of this name says that the archive is not compressed.
	for _, member := range [][2]string{{"COPYING", "test data\n"}, {"daily.info", list}, {file, content}} {
		h := &tar.Header{Name: member[0], Mode: 0o644, Size: int64(len(member[1])), Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := archive.Write([]byte(member[1])); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return whole.Bytes(), nil
}

// extended returns signatures in the form of an .ndb file: for any type of file,
// at any offset.
func extended(signatures []Signature) string {
	var b strings.Builder
	for _, s := range signatures {
		fmt.Fprintf(&b, "%s:0:*:%s\n", s.Name, hex.EncodeToString(s.Content))
	}
	return b.String()
}
