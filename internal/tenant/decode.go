package tenant

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Bounds far beyond any use, so that every check stays cheap.
const (
	maxScanners   = 64
	maxTenants    = 4096
	maxNamespaces = 16384
)

// A reader reads the value of the key called name into wherever it was made for.
type reader func(name string, n *node)

// A key is one key of a mapping: either known, with a reader, or refused, with
// the reason.
type key struct {
	name        string
	read        reader // nil if the key is refused
	why, remedy string // of a refused key
}

// refused returns keys that people may well try and that are refused for a reason.
func refused(why, remedy string, names ...string) []key {
	keys := make([]key, len(names))
	for i, name := range names {
		keys[i] = key{name: name, why: why, remedy: remedy}
	}
	return keys
}

// A located text is a text and where it stands.
type located struct {
	at   position
	text string
}

// texts returns the texts without their places, never nil.
func texts(list []located) []string {
	out := make([]string, len(list))
	for i, l := range list {
		out[i] = l.text
	}
	return out
}

// A decoder reads nodes into values and notes everything that is wrong with them.
type decoder struct{ problems }

// mapping reads the keys of n, which is called what in messages, and returns
// those that were there.
func (d *decoder) mapping(n *node, what string, keys []key) map[string]position {
	seen := make(map[string]position)
	if n.kind != kindMapping {
		d.add(n.at, "write keys and values: "+strings.Join(known(keys), ", "), "%s must be a mapping, found %s", what, n.kind)
		return seen
	}
	for _, f := range n.fields {
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == f.name })
		switch first, again := seen[f.name]; {
		case i < 0:
			d.add(f.at, suggest(f.name, known(keys)), "unknown key %q in %s", f.name, what)
			continue
		case keys[i].read == nil:
			d.add(f.at, keys[i].remedy, "%s cannot have %q: %s", what, f.name, keys[i].why)
			continue
		case again:
			d.add(f.at, "keep one of them", "%q is already set in line %d", f.name, first.line)
			continue
		}
		seen[f.name] = f.at
		if f.value.kind == kindNull {
			d.add(f.at, "give it a value or leave the key out", "%q has no value", f.name)
			continue
		}
		keys[i].read(f.name, f.value)
	}
	return seen
}

// known returns the names of the keys that are not refused.
func known(keys []key) []string {
	var names []string
	for _, k := range keys {
		if k.read != nil {
			names = append(names, k.name)
		}
	}
	return names
}

// list reads each item of a list with each.
func (d *decoder) list(each reader) reader {
	return func(name string, n *node) {
		if n.kind != kindSequence {
			d.add(n.at, "write [...] or lines that begin with -", "%s must be a list, found %s", name, n.kind)
			return
		}
		for _, item := range n.items {
			each(name, item)
		}
	}
}

// node keeps the value for later.
func (d *decoder) node(dst **node) reader {
	return func(_ string, n *node) { *dst = n }
}

// text reads a text that passes ok.
func (d *decoder) text(dst *string, ok check) reader {
	return func(name string, n *node) {
		wrong, remedy := ok(n.text)
		switch {
		case n.kind == kindInteger || n.kind == kindOther:
			if wrong == "" {
				remedy = fmt.Sprintf(`put quotes around it: "%s"`, n.text)
			}
			d.add(n.at, remedy, "%s must be text, found %s", name, n.text)
		case n.kind != kindText:
			d.add(n.at, "write text", "%s must be text, found %s", name, n.kind)
		case strings.ContainsFunc(n.text, unicode.IsControl):
			d.add(n.at, "write it in one line", "%s: %q has control characters", name, n.text)
		case wrong != "":
			d.add(n.at, remedy, "%s: %q %s", name, n.text, wrong)
		default:
			*dst = n.text
		}
	}
}

// texts reads a list of texts that pass ok, none of them twice.
func (d *decoder) texts(dst *[]located, ok check) reader {
	listed := make(map[string]bool)
	return d.list(func(name string, n *node) {
		var text string
		before := len(d.found)
		d.text(&text, ok)(name, n)
		if len(d.found) > before {
			return
		}
		if listed[text] {
			d.add(n.at, "keep one of them", "%s: %q is listed twice", name, text)
			return
		}
		listed[text] = true
		*dst = append(*dst, located{n.at, text})
	})
}

// filled reads a list with r and refuses an empty one for the reason why.
func (d *decoder) filled(r reader, why, remedy string) reader {
	return func(name string, n *node) {
		if n.kind == kindSequence && len(n.items) == 0 {
			d.add(n.at, remedy, "%s is empty: %s", name, why)
			return
		}
		r(name, n)
	}
}

// atMost reads a list with r and refuses one of more than most items.
func (d *decoder) atMost(most int, r reader) reader {
	return func(name string, n *node) {
		if len(n.items) > most {
			d.add(n.items[most].at, "divide them among several agents", "%s has %d items, more than %d", name, len(n.items), most)
			return
		}
		r(name, n)
	}
}

// enum reads one of the allowed words.
func enum[T ~string](d *decoder, dst *T, allowed ...T) reader {
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	return func(name string, n *node) {
		text := string(*dst)
		d.text(&text, oneOf(words...))(name, n)
		*dst = T(text)
	}
}

// oneOf accepts the allowed words.
func oneOf(words ...string) check {
	return func(text string) (wrong, remedy string) {
		if slices.Contains(words, text) {
			return "", ""
		}
		return "is not one of " + strings.Join(words, ", "), suggest(text, words)
	}
}

// count reads a whole number from least to most.
func (d *decoder) count(dst *int, least, most int) reader {
	return func(name string, n *node) {
		remedy := fmt.Sprintf("write a whole number from %d to %d", least, most)
		v, err := strconv.Atoi(n.text)
		switch {
		case n.kind != kindInteger:
			d.add(n.at, remedy, "%s must be a number, found %s", name, describe(n))
		case err != nil || !decimal(strings.TrimPrefix(n.text, "-")):
			d.add(n.at, remedy, "%s: %s is not a plain whole number", name, n.text)
		case v < least || v > most:
			d.add(n.at, remedy, "%s: %d is out of range", name, v)
		default:
			*dst = v
		}
	}
}

// size reads a number of bytes from least on.
func (d *decoder) size(dst *int64, least int64) reader {
	return func(name string, n *node) {
		v, ok := parseSize(n.text)
		switch {
		case n.kind != kindInteger && n.kind != kindText || !ok:
			d.add(n.at, "write whole bytes or a whole number with one of kB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 100MiB",
				"%s must be a size, found %s", name, describe(n))
		case v < least:
			d.add(n.at, fmt.Sprintf("write at least %d bytes", least), "%s: %s is too small", name, n.text)
		default:
			*dst = v
		}
	}
}

// duration reads a duration from least to most.
func (d *decoder) duration(dst *time.Duration, least, most time.Duration) reader {
	remedy := fmt.Sprintf("write a duration from %s to %s, such as 5s or 500ms", short(least), short(most))
	return func(name string, n *node) {
		v, err := time.ParseDuration(n.text)
		_, notNumber := strconv.ParseFloat(n.text, 64)
		switch {
		case n.kind != kindText && notNumber == nil:
			d.add(n.at, remedy, "%s: %s has no unit", name, n.text)
		case n.kind != kindText || err != nil:
			d.add(n.at, remedy, "%s must be a duration, found %s", name, describe(n))
		case v < least || v > most:
			d.add(n.at, remedy, "%s: %s is out of range", name, n.text)
		default:
			*dst = v
		}
	}
}

// short writes a duration as people do: 60s, 1h.
func short(d time.Duration) string {
	if d >= time.Hour {
		return fmt.Sprintf("%gh", d.Hours())
	}
	if d >= time.Second {
		return fmt.Sprintf("%gs", d.Seconds())
	}
	return d.String()
}

// describe names what was found: a scalar by its text, anything else by its kind.
func describe(n *node) string {
	switch n.kind {
	case kindText:
		return strconv.Quote(n.text)
	case kindInteger, kindOther:
		return n.text
	default:
		return n.kind.String()
	}
}

// unique notes every name that an earlier one of the same sort has.
func (d *decoder) unique(what string, names []located) {
	first := make(map[string]int)
	for _, name := range names {
		if line, again := first[name.text]; again {
			d.add(name.at, "give each a name of its own", "%s %q is already defined in line %d", what, name.text, line)
			continue
		}
		if name.text != "" {
			first[name.text] = name.at.line
		}
	}
}
