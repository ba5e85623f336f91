package guard

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) {
	if answers, server := fuseAnswers(); server {
		if err := serveFUSEFile(answers); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	for _, serve := range []func(io.Writer) (bool, error){serveAsChanger, serveAsHammer} {
		if served, err := serve(os.Stdout); served {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	kerneltest.Main(m)
}
