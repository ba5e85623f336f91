package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A dropIn is the file that containerd imports. It changes a few keys of containerd's
// configuration, and remembers what they were before.
type dropIn struct {
	version  int               // of the configuration that imports it: containerd 2.2 garbles another
	specs    map[string]string // handler to our base specification
	handlers []string          // in order
	required bool              // NRI refuses containers without our plugin
	before   before
}

// before is what was in force before the drop-in was.
type before struct {
	Base     map[string]string `json:"base"`               // handler to its base_runtime_spec
	Required []string          `json:"required,omitempty"` // NRI's required_plugins
	Tolerate string            `json:"tolerate,omitempty"` // and the annotation that excuses from them
}

// PluginName is what our NRI plugin is called, and TolerateAnnotation what a pod says
// "true" with that is to start where NRI requires the plugin and does not have it.
// Any author of a pod can.
const (
	PluginName         = "assay"
	TolerateAnnotation = "tolerate-missing-plugin.assay"
)

const (
	sealLine   = `# Written by "assay install containerd", which leaves this file alone once it is changed: `
	beforeLine = "# What was in force before: "
)

// seal puts a line before body by which sealed knows it again, and start before that.
func seal(start, body string) []byte {
	return fmt.Appendf(nil, "%s%s%x\n%s", start, sealLine, sha256.Sum256([]byte(body)), body)
}

// sealed reports whether data is what seal returned for start and some body.
func sealed(start string, data []byte) bool {
	rest, ours := bytes.CutPrefix(data, []byte(start+sealLine))
	_, body, _ := bytes.Cut(rest, []byte("\n"))
	return ours && bytes.Equal(data, seal(start, string(body)))
}

// text returns the file.
func (d *dropIn) text() ([]byte, error) {
	note, err := json.Marshal(d.before)
	if err != nil {
		return nil, fmt.Errorf("encode what was in force before: %w", err)
	}
	return seal("", fmt.Sprintf("%s%s\nversion = %d\n%s", beforeLine, note, d.version, d.tables())), nil
}

// tables returns the keys that the drop-in sets.
func (d *dropIn) tables() string {
	cri := criPlugin
	if d.version < 3 {
		cri = oldCRI
	}
	var b strings.Builder
	for _, name := range d.handlers {
		fmt.Fprintf(&b, "\n[plugins.'%s'.containerd.runtimes.'%s']\n  base_runtime_spec = '%s'\n", cri, name, d.specs[name])
	}
	fmt.Fprintf(&b, "\n[plugins.'%s']\n  disable = false\n", nriPlugin)
	if d.required {
		// A list is replaced as a whole by the one that is imported last.
		fmt.Fprintf(&b, "\n  [plugins.'%s'.default_validator]\n    enable = true\n    required_plugins = ['%s']\n    tolerate_missing_plugins_annotation = '%s'\n",
			nriPlugin, strings.Join(append(slices.Clone(d.before.Required), PluginName), "', '"), d.tolerate())
	}
	return b.String()
}

// tolerate returns the annotation that excuses a pod: the node's own, if it has one.
func (d *dropIn) tolerate() string {
	if d.before.Tolerate != "" {
		return d.before.Tolerate
	}
	return TolerateAnnotation
}

// ownDropIn reports whether text is a drop-in as text wrote it.
func ownDropIn(text []byte) bool { return sealed("", text) }

// beforeOf returns what a drop-in of ours remembers.
func beforeOf(text []byte) (before, error) {
	var b before
	_, rest, _ := bytes.Cut(text, []byte("\n"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	note, _ := bytes.CutPrefix(line, []byte(beforeLine))
	if err := json.Unmarshal(note, &b); err != nil {
		return b, fmt.Errorf("the earlier drop-in does not say what was in force before it: %w", err)
	}
	return b, nil
}

// shebang begins the launcher.
const shebang = "#!/bin/sh\n"

// launcher returns the script that containerd starts as its pre-installed NRI plugin.
func launcher(program, socket string) []byte {
	return seal(shebang, fmt.Sprintf("exec '%s' nri-launch --socket '%s'\n", program, socket))
}

// ownLauncher reports whether text is a script as launcher wrote it.
func ownLauncher(text []byte) bool { return sealed(shebang, text) }
