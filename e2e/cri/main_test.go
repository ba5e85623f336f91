package cri

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
