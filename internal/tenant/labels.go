package tenant

import (
	"regexp"
	"strings"
)

// The syntax of identifiers, as their owners define it.
var (
	// labelName is what Kubernetes calls a qualified name without its prefix, and
	// also a label's value unless that is empty.
	labelName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	// subdomain is RFC 1123's, in lower case.
	subdomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	// class is one set of characters in a shell pattern.
	class = regexp.MustCompile(`\[[^]]*\]`)
	// containerdIdentifier is that of github.com/containerd/containerd/v2/pkg/identifiers.
	containerdIdentifier = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)
)

// The bounds of Kubernetes, in bytes.
const (
	maxLabelName   = 63 // and of a value
	maxLabelPrefix = 253
)

const labelValueForm = "a label's value is empty, or has up to 63 of the characters a-z A-Z 0-9 . _ - and begins and ends with a letter or digit"

// labels reads a mapping of label keys to texts. It leaves out what is wrong.
func (d *decoder) labels(dst *map[string]string, keys, values check) reader {
	return func(name string, n *node) {
		if n.kind != kindMapping {
			d.add(n.at, "write labels and values, as in {team: payments}", "%s must be a mapping, found %s", name, n.kind)
			return
		}
		lines := make(map[string]int, len(n.fields))
		out := make(map[string]string, len(n.fields))
		for _, f := range n.fields {
			if line, again := lines[f.name]; again {
				d.add(f.at, "keep one of them", "%q is already set in line %d", f.name, line)
				continue
			}
			lines[f.name] = f.at.line
			d.label(out, name, f, keys, values)
		}
		*dst = out
	}
}

// label reads one label of the mapping called name.
func (d *decoder) label(out map[string]string, name string, f field, keys, values check) {
	before := len(d.found)
	var value string
	if wrong, remedy := keys(f.name); wrong != "" {
		d.add(f.at, remedy, "%s: %q %s", name, f.name, wrong)
	}
	if f.value.kind == kindNull {
		d.add(f.at, `write "" for the empty value, or leave the label out`, "%q has no value", f.name)
	} else {
		d.text(&value, values)(f.name, f.value)
	}
	if len(d.found) == before {
		out[f.name] = value
	}
}

// checkLabelKey accepts the keys of labels: name or prefix/name.
func checkLabelKey(text string) (wrong, remedy string) {
	prefix, name, prefixed := strings.Cut(text, "/")
	if !prefixed {
		prefix, name = "", text
	}
	switch {
	case prefixed && (len(prefix) > maxLabelPrefix || !subdomain.MatchString(prefix)):
		return "is not a label's key", "write a domain name in lower case before the slash, as in example.com/team"
	case len(name) > maxLabelName || !labelName.MatchString(name):
		return "is not a label's key", "use 1 to 63 of the characters a-z A-Z 0-9 . _ -, begin and end with a letter or digit"
	}
	return "", ""
}

// checkLabelValue accepts the values of labels.
func checkLabelValue(text string) (wrong, remedy string) {
	if text != "" && (len(text) > maxLabelName || !labelName.MatchString(text)) {
		return "is not a label's value", labelValueForm
	}
	return "", ""
}

// checkLabelPattern accepts patterns that some label's value passes.
func checkLabelPattern(text string) (wrong, remedy string) {
	if wrong, remedy = checkPattern(text); wrong != "" {
		return wrong, remedy
	}
	// What stands for one character becomes one. An asterisk may be nothing, or any.
	shape := strings.ReplaceAll(class.ReplaceAllString(text, "x"), "?", "x")
	fixed := len(shape) - strings.Count(shape, "*")
	if text != "" && (fixed > maxLabelName || !labelName.MatchString(strings.ReplaceAll(shape, "*", "x"))) {
		return "selects no label's value", labelValueForm
	}
	return "", ""
}
