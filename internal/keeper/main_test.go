package keeper

import (
	"fmt"
	"os"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := serveAsChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}
