// Package e2e holds the end-to-end tests: real runtimes, real scanners, the
// built agent. A test says what a container experienced (bytes read, an exec
// refused, exit codes) first, and what the agent recorded second. How all of it
// is started and cleaned up is package harness's.
package e2e

import (
	"os"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// suite is what the tests of this package share.
var suite *harness.Suite //nolint:gochecknoglobals // TestMain has no other way to hand it over

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m, func(s *harness.Suite) { suite = s }))
}
