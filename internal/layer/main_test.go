package layer

import (
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }
