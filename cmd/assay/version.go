package main

import (
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"
)

// version is what "make build" says was built; set by the linker.
var version = "devel"

// A versionDocument is the output of "assay version -o json".
type versionDocument struct {
	Version string `json:"version"`
	Go      string `json:"go"` // the toolchain
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version of this program",
		Description: `Prints the version of this program; "assay status" shows the agent's.

Examples:
  assay version
  assay version -o json`,
		Action: p.printVersion,
	}
}

func (p *program) printVersion(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	doc := versionDocument{Version: version, Go: runtime.Version()}
	if asJSON(c) {
		return p.printJSON(doc)
	}
	_, err := fmt.Fprintf(p.stdout, "assay %s (%s)\n", doc.Version, doc.Go)
	return err
}
