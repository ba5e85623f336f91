package fanotify_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) {
	if os.Getenv(readerVariable) != "" {
		fmt.Fprintln(os.Stderr, readOnly(os.Stdout))
		os.Exit(1)
	}
	kerneltest.Main(m)
}
