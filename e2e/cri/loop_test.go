package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// loop starts a container that reads the bad file for ever, and returns the file on the
// host into which it writes how often it has, and what came of it the last time.
func loop(t *testing.T, pod *Pod) string {
	t.Helper()
	dir := suite.HostDirectory(t, nil)
	pod.Start(t, Spec{
		Args:   []string{"guest", "reread", harness.BadFile, "/vol/said"},
		Mounts: []Mount{{Source: dir, Destination: "/vol"}},
	})
	said := filepath.Join(dir, "said")
	awaitReads(t, said, 1)
	return said
}

// awaitReads waits until a loop has tried so many times more. It must have been refused.
func awaitReads(t *testing.T, said string, more int) {
	t.Helper()
	from := -1
	harness.Eventually(t, "the container reads on", func() error {
		text, err := os.ReadFile(said)
		if err != nil {
			return err
		}
		times, outcome := 0, ""
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &times, &outcome); err != nil {
			return fmt.Errorf("it has said %q: %w", text, err)
		}
		if outcome != "EPERM" {
			t.Errorf("reading the bad file again and again: %s", text)
		}
		if from < 0 {
			from = times
		}
		if times < from+more {
			return fmt.Errorf("it has done so %d times, %d before", times, from)
		}
		return nil
	})
}
