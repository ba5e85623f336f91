package guard

import (
	"fmt"
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
	if served, err := serveAsChanger(); served {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}
