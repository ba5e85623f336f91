module github.com/assay-project/assay/e2e

go 1.26.0

require (
	github.com/assay-project/assay v0.0.0
	github.com/opencontainers/runtime-spec v1.3.0
	golang.org/x/sys v0.49.0
)

replace github.com/assay-project/assay => ../
